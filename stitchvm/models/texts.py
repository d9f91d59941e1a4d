"""Prompts as the transformer sees them: encoded by the diffusers pipeline, once each.

Encoding is the pipeline's own `encode_prompt`, one prompt at a time, so a prompt's embedding does
not depend on its neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from stitchvm.backbone import NULL, Prompts

NULL_FILE = "null_text.safetensors"
EMBEDS = ("prompt_embeds", "pooled_prompt_embeds")  # the pipelines' names of a Text's fields


class Text(NamedTuple):
    """Prompts' embeddings: tokens (B, L, D) and pooled (B, P); without B for one prompt."""

    tokens: Tensor
    pooled: Tensor


class Texts(nn.Module, ABC):
    """Embeds prompts and remembers them.

    Args:
        pipeline: Holds the tokenizers and text encoders; None for no text but the null prompt.
        length: Tokens of the T5 part, `max_sequence_length` of the pipeline.
        null: Embedding of the null prompt, (L, D) and (P,); encoded when None.
    """

    def __init__(self, pipeline: Any, length: int, null: Text | None = None) -> None:
        super().__init__()
        parts = {} if pipeline is None else pipeline.components
        self.pipeline, self.length = pipeline, length
        present = {name: part for name, part in parts.items() if part is not None}
        self.encoders = nn.ModuleDict(
            {name: part for name, part in present.items() if name.startswith("text_encoder")}
        )
        self.tokenizers = [p for name, p in present.items() if name.startswith("tokenizer")]
        self._seen = {} if null is None else {NULL: null}

    @abstractmethod
    def encode(self, prompt: str, device: torch.device) -> Text:
        """The pipeline's embedding of one prompt, (1, L, D) and (1, P)."""

    def forward(self, c: Prompts, like: Tensor) -> Text:
        """Embeddings of prompts, in the dtype and on the device of a tensor.

        Raises:
            ValueError: if a prompt needs text encoders and there are none, or has words that its
                tokenizer does not know.
        """
        texts = [self._remembered(prompt) for prompt in c]
        return Text(*(torch.stack(rows).to(like) for rows in zip(*texts, strict=True)))

    def save_null(self, folder: str | Path) -> Path:
        """Store the null prompt's embedding beside the weights; returns the file."""
        path = Path(folder) / NULL_FILE
        save_file({name: x.contiguous().cpu() for name, x in self.null().items()}, path)
        return path

    def null(self) -> dict[str, Tensor]:
        """The null prompt's embedding, by the pipeline's names, (1, L, D) and (1, P)."""
        return {name: x[None] for name, x in zip(EMBEDS, self._remembered(NULL), strict=True)}

    def check(self, tokens: int, pooled: int) -> None:
        """Refuse embeddings, such as a stored one, that do not fit a transformer.

        Args:
            tokens: D that it takes.
            pooled: P that it takes.

        Raises:
            ValueError: if one has another width.
        """
        for text in self._seen.values():
            got = text.tokens.shape[-1], text.pooled.shape[-1]
            if got != (tokens, pooled):
                raise ValueError(
                    f"expected text embeddings of width {tokens} and {pooled} pooled, as the "
                    f"transformer takes, got {got[0]} and {got[1]}"
                )

    def _remembered(self, prompt: str) -> Text:
        if prompt not in self._seen:
            self._seen[prompt] = self._encode(prompt)
        return self._seen[prompt]

    def _encode(self, prompt: str) -> Text:
        if self.pipeline is None:
            raise ValueError(
                f"expected the null prompt, the only one known without text encoders, "
                f"got {prompt!r}"
            )
        for tokenizer in self.tokenizers:
            check_words(tokenizer, prompt)
        device = next(self.encoders.parameters()).device
        # Remembered embeddings must serve autograd even if first asked for in inference mode.
        with torch.inference_mode(mode=False), torch.no_grad():
            tokens, pooled = self.encode(prompt, device)
        text = Text(tokens[0], pooled[0])
        first = next(iter(self._seen.values()), text).tokens.shape
        if text.tokens.shape != first:
            raise ValueError(
                f"expected {tuple(first)} text tokens, as the prompts before or the stored null "
                f"prompt, got {tuple(text.tokens.shape)} for {prompt!r}"
            )
        return text

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Texts":  # noqa: FBT001, FBT002
        self._seen = {p: Text(*(fn(x) for x in text)) for p, text in self._seen.items()}
        return super()._apply(fn, recurse)


def load_null(folder: str | Path) -> Text | None:
    """The null prompt's embedding that `save_null` stored in a folder, or None if it did not."""
    path = Path(folder) / NULL_FILE
    return read_null(path) if path.is_file() else None


def read_null(path: str | Path) -> Text:
    """The null prompt's embedding in a file: of `save_null`, or of a saved StitchVM.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"expected the null prompt's embedding in {path}, got no such file"
        )
    tensors = load_file(path)
    if tensors.keys() != set(EMBEDS):
        raise ValueError(f"expected {' and '.join(EMBEDS)} in {path}, got {sorted(tensors)}")
    return Text(*(tensors[name][0] for name in EMBEDS))


def check_words(tokenizer: Any, prompt: str) -> None:
    """Refuse words outside a whole-word vocabulary, which would be replaced in silence.

    Subword tokenizers are left alone: CLIP's spell out any text, T5's loses single characters.

    Raises:
        ValueError: if the vocabulary is of whole words and lacks some of the prompt's.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return
    if not isinstance(tokenizer.backend_tokenizer.model, WordLevel):
        return
    text = tokenizer(prompt, truncation=True, return_offsets_mapping=True)
    spans = zip(text["input_ids"], text["offset_mapping"], strict=True)
    unknown = [prompt[a:b] for k, (a, b) in spans if k == tokenizer.unk_token_id and a < b]
    if unknown:
        raise ValueError(
            f"expected words of the tokenizer's vocabulary, got {', '.join(unknown)} in {prompt!r}"
        )
