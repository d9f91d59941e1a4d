"""The one training loop: seeded, resumable at any step, averaged, kept at its best.

Batches and noise of step s derive from (seed, s) alone, so a run that was killed and started
again goes on as if nothing had happened.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from stitchvm.streams import derive

SAVE_EVERY = 60.0  # seconds between checkpoints
CHECKPOINT, BEST, LOG = "checkpoint.pt", "best.pt", "log.jsonl"


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        steps: In all.
        rate: Peak learning rate; warm-up, then cosine to a hundredth.
        warmup: Steps.
        decay: Weight decay.
        average: Half-life of the weight average, in steps; never longer than a tenth of the past.
        check_every: Steps between evaluations.
        bf16: Whether matrix products other than attention's run in bfloat16.
        muon: Part of the names of the matrices that Muon trains (Jordan et al., 2024), where AdamW
            trains the rest: here it halves the steps a transformer needs.
    """

    steps: int
    rate: float
    warmup: int = 100
    decay: float = 0.0
    average: float = 100.0
    check_every: int = 250
    bf16: bool = False
    muon: str | None = None

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def fit(
    model: nn.Module,
    loss: Callable[[Any, int, torch.Generator], Tensor],
    check: Callable[[Any, int], dict[str, float]],
    recipe: Recipe,
    folder: Path,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Train a network; its averaged weights end at their best check.

    Args:
        model: What to train, in place.
        loss: (model, step, rng) -> a scalar.
        check: (averaged model, step) -> figures; `score` is what to maximise.
        recipe: How.
        folder: Where checkpoint, log and best weights lie.
        seed: Of batches and noise.

    Yields:
        A record at each check: step, seconds, loss, and the check's figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(model, recipe, folder, seed)
    run.resume()
    while run.step < recipe.steps:
        rng = torch.Generator().manual_seed(derive(seed, "step", run.step))
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16), _FullAttention():
            value = loss(model, run.step, rng)
        run.descend(value)
        last = run.step == recipe.steps
        if last or run.step % recipe.check_every == 0:
            yield run.check(check)
        if last or time.monotonic() - run.saved_at > SAVE_EVERY:
            run.save()
    model.load_state_dict(torch.load(folder / BEST, weights_only=True))
    model.eval().requires_grad_(requires_grad=False)


def keep(folder: Path, save: Callable[[Path], None]) -> None:
    """Save a finished network as `<folder>/model`, which is there whole or not at all.

    Args:
        folder: Of the stage.
        save: Saves into the folder it is given.
    """
    new = folder / "model.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save(new)
    os.replace(new, folder / "model")


class _FullAttention(TorchFunctionMode):
    """Attention in float32: on CPUs its backward pass is several times slower in bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func != scaled_dot_product_attention:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_full, args), **{name: _full(a) for name, a in kwargs.items()})


def _full(argument: Any) -> Any:
    floating = isinstance(argument, Tensor) and argument.is_floating_point()
    return argument.float() if floating else argument


class _Run:
    """A training as far as it has come."""

    def __init__(self, model: nn.Module, recipe: Recipe, folder: Path, seed: int) -> None:
        self.model, self.recipe, self.folder, self.seed = model, recipe, folder, seed
        self.optimisers = _optimisers(model, recipe)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step, self.best = 0, -math.inf
        self.smooth: float | None = None
        self.begun = self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one.

        Raises:
            ValueError: if it is of another seed.
        """
        path = self.folder / CHECKPOINT
        if path.exists():
            saved = torch.load(path, weights_only=True)
            if saved["seed"] != self.seed:
                raise ValueError(
                    f"expected a run of seed {self.seed} in {self.folder}, got {saved['seed']}"
                )
            self.model.load_state_dict(saved["model"])
            for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)
            self.average, self.step, self.best = saved["average"], saved["step"], saved["best"]
            self.smooth, self.begun = saved["smooth"], time.monotonic() - saved["spent"]
        _shorten(self.folder / LOG, self.step)

    def descend(self, value: Tensor) -> None:
        """One step down the gradient of a loss."""
        for group in (g for optimiser in self.optimisers for g in optimiser.param_groups):
            group["lr"] = self.recipe.rate_at(self.step)
        self.model.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        now = value.item()
        self.smooth = now if self.smooth is None else 0.98 * self.smooth + 0.02 * now
        keep = min(0.5 ** (1 / self.recipe.average), 1 - 10 / (self.step + 10))
        _average(self.average, self.model, keep)

    def check(self, check: Callable[[Any, int], dict[str, float]]) -> dict[str, Any]:
        """Examine the averaged weights, keep them if they are the best, log what was found."""
        with _swapped(self.model, self.average):
            figures = check(self.model.eval(), self.step)
        if figures["score"] >= self.best:
            self.best = figures["score"]
            _write(self.folder / BEST, self.average)
        seconds = time.monotonic() - self.begun
        record = {"step": self.step, "seconds": seconds, "loss": self.smooth, **figures}
        with (self.folder / LOG).open("a") as log:
            log.write(json.dumps(record) + "\n")
        return record

    def save(self) -> None:
        """Write the checkpoint."""
        self.saved_at = time.monotonic()
        state = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "step": self.step,
            "spent": self.saved_at - self.begun,
            "best": self.best,
            "smooth": self.smooth,
            "seed": self.seed,
        }
        _write(self.folder / CHECKPOINT, state)


def _optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices that the recipe names."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    muon = {
        name: p
        for name, p in named.items()
        if recipe.muon and recipe.muon in name and p.ndim == 2  # noqa: PLR2004
    }
    rest = [p for name, p in named.items() if name not in muon]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay)
    ]
    if muon:
        found.append(
            torch.optim.Muon(
                muon.values(),
                recipe.rate,
                weight_decay=recipe.decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return found


@torch.no_grad()
def _average(average: dict[str, Tensor], model: nn.Module, keep: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - keep)
        else:
            average[name].copy_(value)


class _swapped:
    """The model with its averaged weights, for as long as the block lasts."""

    def __init__(self, model: nn.Module, average: dict[str, Tensor]) -> None:
        self.model, self.average = model, average

    def __enter__(self) -> None:
        self.own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)

    def __exit__(self, *_: object) -> None:
        self.model.load_state_dict(self.own)


def _shorten(log: Path, step: int) -> None:
    """Drop what was logged after a step: it will be done and logged again."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        log.write_text("".join(f"{line}\n" for line in kept))


def _write(path: Path, state: Any) -> None:
    """Whole or not at all, however the process ends."""
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
