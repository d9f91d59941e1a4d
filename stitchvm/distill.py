r"""Stage 2 of StitchVM: finetuning layer and tail on noisy latents towards the clean reward.

    L = E | e_s(z_t) - e(x_0) |^2 + lambda_tok | tokens_s(z_t) - tokens(x_0) |^2           (Eq. 78)
    L = E  S(tokens_s - tokens) + S(e_s - e) + S(r_s - r),   S the Smooth-L1 loss          (Eq. 79)
    L = E  2 / lambda^2 (exp(d) - d - 1),   d = lambda (r - r_s)                       (soft value)

over unlabelled clean images x_0, t from a centre-biased distribution, the backbone frozen.  A
squared error in a score makes its minimiser E[r(z_0) | z_t] (Prop. 1).  In unit embeddings it does
not: the best unit vector is E[e] / |E[e]|, so a cosine comes out too high by 1 / |E[e | z_t]|
(`norm=unit`, as published); an embedding of any length has E[e | z_t] itself as its minimiser
(`norm=free`).  The third is not the paper's: it is least where E exp(d) = 1, at the soft value
(1 / lambda) log E exp(lambda r) of Eq. 52, and is the squared error as lambda goes to 0.

The paper says nothing of how tokens are averaged: here every loss is a sum over an embedding's
numbers, and a mean over a token's.

Source: arXiv:2605.19804, section 4.1 and appendix D.1.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, smooth_l1_loss

from stitchvm import checkpoint
from stitchvm.backbone import Prompts
from stitchvm.reward import Features, Reward
from stitchvm.streams import derive
from stitchvm.teacher import Lessons, Noisy
from stitchvm.value import Target
from stitchvm.workers import ALONE, Workers

CHECKPOINT = "checkpoint.pt"


class Student(Protocol):
    """Whatever can be finetuned and kept: a value model that shows what it scores."""

    reward: Reward
    target: Target

    def features(self, z_t: Tensor, t: Tensor, c: Prompts) -> Features:
        """Tokens and embedding for noisy latents."""
        ...

    def trained(self) -> dict[str, dict[str, nn.Parameter]]:
        """Named weights to train, by group: `layer` is new, `tail` was pretrained."""
        ...

    def save_pretrained(
        self,
        folder: Path | str,
        about: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write them, and what they belong to, into a new folder."""
        ...


@dataclass(frozen=True)
class Recipe:
    """How stage 2 is run; defaults are the paper's (D.1).

    Attributes:
        steps: Optimiser steps; the paper makes 5 epochs.
        batch: Images a step.
        rate: Of AdamW on the tail.
        layer_factor: The layer's rate is this many times that.
        decay: Weight decay.
        warmup: Steps of linear warm-up, then constant or `cosine` to nothing.
        schedule: The paper names none beyond the warm-up.
        loss: `embedding` is Eq. 78, `score` Eq. 79, `soft` the third.
        lam: Lambda of the `soft` loss.
        token_weight: lambda_tok.
        times: `logit-normal`, the paper's "centre-biased" as we read it, or `uniform`.
        median: Of the logit-normal times; `match_snr(0.5, ...)` centres them by SNR.
        average: Half-life in steps of an average of the weights, which is then what is kept.
        bf16: Whether matrix products run in bfloat16.
        seed: Of batches, times and noise.
    """

    steps: int
    batch: int = 128
    rate: float = 1e-5
    layer_factor: float = 5.0
    decay: float = 0.0
    warmup: int = 100
    schedule: Literal["constant", "cosine"] = "constant"
    loss: Literal["embedding", "score", "soft"] = "embedding"
    lam: float = 1.0
    token_weight: float = 1.0
    times: Literal["logit-normal", "uniform"] = "logit-normal"
    median: float = 0.5
    average: float | None = None
    bf16: bool = False
    seed: int = 0

    def continues(self, earlier: "Recipe") -> bool:
        """Whether the steps of an earlier recipe are the first ones of this."""
        longer = self.steps == earlier.steps or (
            self.steps > earlier.steps and self.schedule == "constant"
        )
        return longer and replace(self, steps=earlier.steps) == earlier

    def rate_at(self, step: int) -> float:
        """Learning rate of the tail at a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.rate
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * done))

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Times of a batch, (count,)."""
        if self.times == "uniform":
            return torch.rand(count, generator=rng)
        centre = math.log(self.median / (1 - self.median))
        return (centre + torch.randn(count, generator=rng)).sigmoid()


def losses(
    student: Student, found: Features, target: Features, c: Prompts, recipe: Recipe
) -> dict[str, Tensor]:
    """The terms of a loss, each a mean over the batch."""
    if recipe.loss == "soft":
        score, clean = (student.reward.score(e, c) for e in (found.embedding, target.embedding))
        d = recipe.lam * (clean - score)
        return {"soft": 2 / recipe.lam**2 * (d.expm1() - d).mean()}
    smooth = recipe.loss == "score"
    distance = smooth_l1_loss if smooth else mse_loss
    off = distance(found.embedding, target.embedding, reduction="none")
    terms = {"embedding": off.sum(-1).mean()}
    if recipe.token_weight:
        terms["tokens"] = recipe.token_weight * distance(found.tokens, target.tokens)
    if smooth:
        score, clean = (student.reward.score(e, c) for e in (found.embedding, target.embedding))
        terms["score"] = smooth_l1_loss(score, clean)
    return terms


@torch.no_grad()
def held_loss(
    student: Student,
    data: Lessons,
    recipe: Recipe,
    *,
    workers: Workers = ALONE,
    micro: int | None = None,
) -> float:
    """The loss on images that nothing is trained on, each once, at times and noise of its own.

    Arguments as in `distill`.
    """
    each = micro or recipe.batch
    batches = [data.c[k : k + recipe.batch] for k in range(0, len(data.c), recipe.batch)]
    prompts = [text for batch in batches for text in _shown(student, batch)]
    rng = torch.Generator().manual_seed(derive(recipe.seed, "held loss"))
    z_t, t = data.noisy(torch.arange(len(data.c)), recipe.draw, rng)
    like, total = next(iter(student.reward.parameters())), 0.0
    for first in range(workers.rank * each, len(z_t), workers.count * each):
        rows = slice(first, first + each)
        c = prompts[rows]
        with torch.autocast(like.device.type, torch.bfloat16, enabled=recipe.bf16):
            found = student.features(z_t[rows].to(like.device), t[rows].to(like.device), c)
        target = Features(data.tokens[rows].to(like), data.embedding[rows].to(like))
        terms = losses(student, found, target, c, recipe)
        total += len(c) * sum(term.item() for term in terms.values())
    mean = torch.tensor(total, dtype=torch.float64, device=like.device)
    workers.mean([mean])
    return workers.count * mean.item() / len(z_t)


def _shown(student: Student, c: Prompts) -> Prompts:
    """The prompts that values are learned under: for the data's posterior, of other images."""
    return [*c[1:], *c[:1]] if student.target.posterior == "data" else c


class Record(NamedTuple):
    """One optimiser step.

    Attributes:
        step: Steps made, this one included.
        loss: All terms.
        terms: Each of them.
        gradient: Norm of the gradient.
        rate: Learning rate of the tail.
    """

    step: int
    loss: float
    terms: dict[str, float]
    gradient: float
    rate: float


def distill(
    student: Student,
    data: Lessons,
    recipe: Recipe,
    folder: Path | None = None,
    *,
    every: int = 200,
    keep: Collection[int] = (),
    workers: Workers = ALONE,
    micro: int | None = None,
) -> Iterator[Record]:
    """Finetune a student in place; what it holds at the end are the averaged weights, if asked.

    Args:
        student: Its trained weights get gradients while it runs; it must own them.
        data: Noisy latents and what the teacher makes of the clean images.
        recipe: How.
        folder: Of the checkpoint; a run that was stopped goes on from it, bit for bit on a CPU,
            and so does one that has ended and is to have more steps at a constant rate.
        every: Steps between checkpoints.
        keep: Steps with a checkpoint besides.
        workers: The processes that share a batch; the first writes the checkpoint, all read it.
        micro: Images whose graphs are kept at once; those of a whole share when None.

    Yields:
        A record of each step.

    Raises:
        ValueError: for a checkpoint of another recipe, or one that is torn, or a batch that
            processes cannot share.
        FloatingPointError: if a loss or a gradient is not finite.
    """
    run = _Run(student, recipe, workers, micro)
    if folder is not None:
        run.resume(folder)
    while run.step < recipe.steps:
        record = run.descend(data)
        due = run.step % every == 0 or run.step == recipe.steps or run.step in keep
        if folder is not None and due and workers.first:
            run.save(folder, record)
        yield record
    run.finish()


def last_record(folder: Path) -> Record | None:
    """Of the step at which a run's checkpoint was written; None where there is no checkpoint.

    Raises:
        ValueError: for a torn one.
    """
    path = folder / CHECKPOINT
    return Record(**checkpoint.read(path)["record"]) if path.is_file() else None


@contextmanager
def averaged(student: Student, folder: Path) -> Iterator[None]:
    """A student with the weights that a run would keep if it ended at its last checkpoint.

    Raises:
        ValueError: if there is no checkpoint, or a torn one.
    """
    state, weights = checkpoint.read(folder / CHECKPOINT), named(student)
    before = {name: w.detach().clone() for name, w in weights.items()}
    _put(weights, state["average"] or state["weights"])
    try:
        yield
    finally:
        _put(weights, before)


def named(student: Student) -> dict[str, nn.Parameter]:
    """The weights that are trained, by group and name."""
    return {f"{g}.{n}": w for g, group in student.trained().items() for n, w in group.items()}


@torch.no_grad()
def _put(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


class _Run:
    """A finetuning as far as it has come."""

    def __init__(
        self, student: Student, recipe: Recipe, workers: Workers, micro: int | None
    ) -> None:
        self.student, self.recipe, self.step = student, recipe, 0
        self.workers, self.own, self.micro = workers, workers.share(recipe.batch), micro
        groups, self.weights = student.trained(), named(student)
        for weight in self.weights.values():
            weight.requires_grad_()
        factors = {"layer": recipe.layer_factor, "tail": 1.0}
        self.optimiser = torch.optim.AdamW(
            [
                {"params": list(weights.values()), "factor": factors[group]}
                for group, weights in groups.items()
                if weights
            ],
            lr=recipe.rate,
            weight_decay=recipe.decay,
            fused=True,
        )
        self.average = (
            {name: w.detach().clone() for name, w in self.weights.items()}
            if recipe.average is not None
            else None
        )

    def descend(self, data: Lessons) -> Record:
        """One step."""
        recipe, weights = self.recipe, list(self.weights.values())
        self.optimiser.zero_grad(set_to_none=True)
        figures = self._backward(data)
        gradients = [w.grad for w in weights if w.grad is not None]
        self.workers.mean([*gradients, *figures.values()])
        loss = torch.stack(list(figures.values())).sum()
        if not bool(loss.isfinite()):
            raise FloatingPointError(
                f"expected a finite loss at step {self.step}, got {loss.item()}"
            )
        norm = nn.utils.get_total_norm(gradients)
        if not bool(norm.isfinite()):
            raise FloatingPointError(f"expected a finite gradient at step {self.step}, got {norm}")
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate_at(self.step) * group["factor"]
        self.optimiser.step()
        self.step += 1
        self._follow()
        terms = {name: term.item() for name, term in figures.items()}
        return Record(self.step, loss.item(), terms, norm.item(), recipe.rate_at(self.step - 1))

    def _backward(self, data: Lessons) -> dict[str, Tensor]:
        """Gradients of this process's share of a batch, and the terms of its loss."""
        rng = torch.Generator().manual_seed(derive(self.recipe.seed, "distill", self.step))
        rows = torch.randint(len(data.c), (self.recipe.batch,), generator=rng)
        noisy = data.noisy(rows, self.recipe.draw, rng)
        c = _shown(self.student, [data.c[row] for row in rows.tolist()])
        own = range(len(rows))[self.own]
        figures: dict[str, Tensor] = {}
        each = self.micro or len(own)
        for first in own[::each]:
            part = slice(first, min(first + each, own.stop))
            terms = self._terms(data, rows[part], Noisy(noisy.z_t[part], noisy.t[part]), c[part])
            share = (part.stop - part.start) / len(own)
            (share * torch.stack(list(terms.values())).sum()).backward()
            for name, term in terms.items():
                figures[name] = figures.get(name, 0.0) + share * term.detach()
        return figures

    def _terms(self, data: Lessons, rows: Tensor, noisy: Noisy, c: Prompts) -> dict[str, Tensor]:
        """The terms of the loss of some images."""
        like = next(iter(self.weights.values()))
        target = Features(data.tokens[rows].to(like), data.embedding[rows].to(like))
        with torch.autocast(like.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            found = self.student.features(noisy.z_t.to(like.device), noisy.t.to(like.device), c)
        return losses(self.student, found, target, c, self.recipe)

    @torch.no_grad()
    def _follow(self) -> None:
        if self.average is None or self.recipe.average is None:
            return
        keep = min(0.5 ** (1 / self.recipe.average), 1 - 10 / (self.step + 10))
        for name, weight in self.weights.items():
            self.average[name].lerp_(weight, 1 - keep)

    def save(self, folder: Path, record: Record) -> None:
        """Write the checkpoint with the last record; it is there whole or not at all."""
        state = {
            "weights": {name: w.detach() for name, w in self.weights.items()},
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "record": record._asdict(),
            "recipe": asdict(self.recipe),
        }
        checkpoint.write(folder / CHECKPOINT, state)

    def resume(self, folder: Path) -> None:
        """Go back to the checkpoint, if there is one."""
        path = folder / CHECKPOINT
        if not path.exists():
            return
        state = checkpoint.read(path)
        if not self.recipe.continues(Recipe(**state["recipe"])):
            raise ValueError(
                f"expected a checkpoint of {asdict(self.recipe)} at {path}, got {state['recipe']}"
            )
        _put(self.weights, state["weights"])
        for name, mean in (self.average or {}).items():
            mean.copy_(state["average"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    @torch.no_grad()
    def finish(self) -> None:
        """Freeze the weights, the averaged ones if there are any."""
        for name, weight in self.weights.items():
            if self.average is not None:
                weight.copy_(self.average[name])
            weight.requires_grad = False
            weight.grad = None
