"""Pretraining of a generator's text encoder: at every word, what has been said so far.

Words fall into classes; at every word linear heads must tell the last one of each class in this
phrase and in the phrase before ("a red ring above a blue | cross": blue, cross; red, ring; above).
It stands for what SD 3's encoders, which come from CLIPs that have read the web, know before.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from bench.worlds.shapes.captions import COUNT, PLACES, PLURAL, RELATIONS
from bench.worlds.shapes.make.clip import Told
from bench.worlds.shapes.make.fit import Recipe, fit, keep
from bench.worlds.shapes.make.words import LENGTH, text_config
from bench.worlds.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, draw

TEXT = 64  # width
SCENES, HELD, BATCH, STEPS = 40_000, 2000, 128, 2500
CLASSES: tuple[tuple[str, ...], ...] = (
    tuple(COUNT),
    tuple(SIZES),
    tuple(COLOURS),
    (*SHAPES, *PLURAL.values()),
    tuple(r.split()[0] for r in RELATIONS),
    tuple(BACKGROUNDS),
    tuple(p.split()[-1] for p in PLACES),
)
BREAKS = {"and", ",", "of", "above", "below", "on", "at", "in"}  # words that end a phrase
NOTHING = -100  # label of what is not a word, ignored by the loss


def encoder(act: str) -> CLIPTextModelWithProjection:
    """An untrained text encoder of a generator."""
    config = CLIPTextConfig(**text_config(TEXT, 3, 4), projection_dim=TEXT, hidden_act=act)
    return CLIPTextModelWithProjection(config)


def heard(caption: str) -> Tensor:
    """At each token, the last word of each class, now and before, (LENGTH, 2 classes).

    0 is none, k the k-th word of the class; tokens that are no words have NOTHING.
    """
    now, before = [0] * len(CLASSES), [0] * len(CLASSES)
    rows = torch.full((LENGTH, 2 * len(CLASSES)), NOTHING)
    for place, word in enumerate(caption.split(), start=1):
        if word in BREAKS:
            before, now = now, [0] * len(CLASSES)
        for index, known in enumerate(CLASSES):
            if word in known:
                now[index] = 1 + known.index(word)
        rows[place] = torch.tensor([*now, *before])
    return rows


class Reader(nn.Module):
    """A text encoder with linear heads: on each token, and on the pooled embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder("quick_gelu")
        self.sizes = [1 + len(known) for known in CLASSES] * 2
        self.at_words, self.at_end = (nn.Linear(TEXT, sum(self.sizes)) for _ in range(2))

    def forward(self, ids: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Logits of each class at each token, (B, LENGTH, ...), and of the text, (B, ...)."""
        out = self.encoder(ids, output_hidden_states=True)
        tokens = self.at_words(out.hidden_states[-2])  # what the generator takes
        return tokens.split(self.sizes, -1), self.at_end(out.text_embeds).split(self.sizes, -1)


def train(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Train one text encoder from nothing."""
    torch.manual_seed(seed)
    model = Reader()
    data, tune = Told(draw("train", SCENES)), Told(draw("tune", HELD))
    held_rng = torch.Generator().manual_seed(0)
    held = [tune.caption(row, held_rng) for row in range(HELD)]

    def loss(model: Any, step: int, rng: torch.Generator) -> Tensor:
        del step
        rows = torch.randint(SCENES, (BATCH,), generator=rng)
        texts = [data.caption(row, rng) for row in rows.tolist()]
        labels = torch.stack([heard(c) for c in texts])
        last = labels[range(BATCH), [len(c.split()) for c in texts]]
        words, ends = model(data.tokens(texts))
        return sum(
            cross_entropy(w.flatten(0, 1), labels[..., k].flatten()) + cross_entropy(e, last[:, k])
            for k, (w, e) in enumerate(zip(words, ends, strict=True))
        )  # type: ignore[return-value]

    @torch.no_grad()
    def check(model: Any, step: int) -> dict[str, float]:
        del step
        labels = torch.stack([heard(c) for c in held])
        words, _ = model(tune.tokens(held))
        right = torch.stack([w.argmax(-1) for w in words], -1) == labels
        score = right[labels[..., 0] != NOTHING].all(-1).float().mean().item()
        return {"score": score, "words_read": score}

    yield from fit(model, loss, check, Recipe(STEPS, rate=2e-3, check_every=250), folder, seed)
    keep(folder, model.encoder.save_pretrained)
