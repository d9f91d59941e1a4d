"""ValueEstimator: anything that says what a noisy latent is worth.

What is estimated differs in four ways, and every estimator declares them in its Target:

    mean        E[r(z_0) | z_t]                                        (Eq. 49)
    soft        (1 / lambda) log E[exp(lambda r(z_0)) | z_t]           (Eqs. 3, 52, over lambda)

under the posterior p(z_0 | z_t) (`data`), p(z_0 | z_t, c) (`prompt`), or whatever a named sampler
makes of z_t (`model`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stitchvm.backbone import Prompts
from stitchvm.reward import Features, Reward
from stitchvm.streams import Streams


@dataclass(frozen=True)
class Target:
    """What an estimator aims at - declared, never probed.

    Attributes:
        value: `mean`, or `soft` with its lam.
        posterior: `data`, `prompt` or `model`.
        lam: Inverse temperature lambda > 0 of the soft value; None for the mean.
        kernel: For `model`, the sampler, steps and guidance that finish z_t.

    Raises:
        ValueError: if lam or kernel are missing where needed, or present where not.
    """

    value: Literal["mean", "soft"] = "mean"
    posterior: Literal["data", "prompt", "model"] = "data"
    lam: float | None = None
    kernel: str | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("value", ("mean", "soft")),
            ("posterior", ("data", "prompt", "model")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} in {known}, got {getattr(self, name)!r}")
        if self.value == "soft" and not (self.lam is not None and 0 < self.lam < math.inf):
            raise ValueError(f"expected lambda > 0 for the soft value, got {self.lam}")
        if self.value == "mean" and self.lam is not None:
            raise ValueError(f"expected no lambda for the mean value, got {self.lam}")
        if (self.posterior == "model") != (self.kernel is not None):
            raise ValueError(
                f"expected a kernel for the model posterior and only there, got "
                f"posterior={self.posterior!r}, kernel={self.kernel!r}"
            )

    def __str__(self) -> str:
        value = self.value if self.lam is None else f"soft({self.lam:g})"
        return f"{value} | {self.posterior if self.kernel is None else self.kernel}"

    @property
    def realised(self) -> bool:
        """Whether it is the mean of the clean rewards that noised clean latents realise."""
        return self.value == "mean" and self.posterior != "model"

    def as_dict(self) -> dict[str, Any]:
        """The target as plain data, for records, its text included."""
        return {**asdict(self), "text": str(self)}


class NotApplicable(ValueError):  # noqa: N818 - it is no error
    """Raised by a build that declines, saying why: what was asked does not apply to it."""


class ValueEstimator(nn.Module, ABC):
    """V_t(z_t | c): the one interface of the project.

    Inputs are checked before every call, for every implementation.

    Attributes:
        latent: Shape of one latent, (C, H, W).
        target: What is estimated.
        differentiable: Whether the value has a gradient in z_t.
        stochastic: Whether the value depends on rng.
    """

    latent: tuple[int, ...]
    target: Target
    differentiable: bool = True
    stochastic: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(_check, with_kwargs=True)

    @abstractmethod
    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value of noisy latents.

        Args:
            z_t: Noisy latents, (B, *latent).
            t: Their times, () or (B,), in [0, 1].
            c: Their prompts, B of them.
            rng: One stream per row; needed by stochastic estimators only.

        Returns:
            Values in units of the reward, (B,).

        Raises:
            ValueError: if an input has the wrong shape, length or range.
        """


def _check(estimator: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse wrong inputs of an estimator with a message that says what was expected."""
    named = {**dict(zip(("z_t", "t", "c", "rng"), args, strict=False)), **kwargs}
    if not {"z_t", "t", "c"} <= named.keys():
        return  # forward says what is missing
    z_t, t, c, rng = named["z_t"], named["t"], named["c"], named.get("rng")
    latent, rows = tuple(estimator.latent), z_t.shape[0]  # type: ignore[arg-type]
    if tuple(z_t.shape[1:]) != latent:
        raise ValueError(
            f"expected z_t of shape (B, {', '.join(map(str, latent))}), got {tuple(z_t.shape)}"
        )
    if not z_t.is_meta and not bool(z_t.isfinite().all()):
        raise ValueError(
            f"expected finite z_t, got {int((~z_t.isfinite()).sum())} values not finite"
        )
    if not isinstance(t, Tensor) or t.shape not in {(), (rows,)}:
        got = f"{tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(f"expected t of shape () or ({rows},), got {got}")
    if not t.is_meta and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"expected t in [0, 1], got {t.min():g} to {t.max():g}")
    if isinstance(c, str) or len(c) != rows:
        got = "one string" if isinstance(c, str) else f"{len(c)}"
        raise ValueError(f"expected {rows} prompts, one per latent, got {got}")
    if estimator.stochastic and rng is None:
        raise ValueError(
            f"expected rng, one stream per latent: "
            f"{type(estimator).__name__} is stochastic; got None"
        )
    if rng is not None and len(rng) != rows:
        raise ValueError(f"expected {rows} random streams, one per latent, got {len(rng)}")


class EmbeddingEstimator(ValueEstimator):
    """A value that scores one embedding of the latent: V(z_t | c) = score(e(z_t), c).

    What retrieves, compares and ranks like the reward itself; a mean over rollouts does not.

    Attributes:
        reward: Whose score.
    """

    reward: Reward

    @abstractmethod
    def features(self, z_t: Tensor, t: Tensor, c: Prompts) -> Features:
        """Tokens and embedding that stand for the clean image's; arguments as in `forward`."""

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,)."""
        return self.reward.score(self.features(z_t, t, c).embedding, c)


class Sum(ValueEstimator):
    """The value of a sum of rewards: the sum of their values (Eq. 80).

    Args:
        parts: One estimator a reward, of the same latents.

    Raises:
        ValueError: if there is none, they are of different latents or targets, or several are
            soft, whose sum is no value.
    """

    def __init__(self, parts: Sequence[ValueEstimator]) -> None:
        super().__init__()
        latents = {tuple(part.latent) for part in parts}
        targets = {part.target for part in parts}
        if len(latents) != 1 or len(targets) != 1:
            raise ValueError(
                f"expected values of one latent and one target, got {sorted(latents)} and "
                f"{sorted(map(str, targets))}"
            )
        if len(parts) > 1 and parts[0].target.value != "mean":
            raise ValueError(f"expected mean values to add up, got {parts[0].target}")
        self.parts = nn.ModuleList(parts)
        self.latent, self.target = parts[0].latent, parts[0].target
        self.differentiable = all(part.differentiable for part in parts)
        self.stochastic = any(part.stochastic for part in parts)

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,)."""
        values = [
            part(z_t, t, c, None if rng is None else rng.child("part", k))
            for k, part in enumerate(self.parts)
        ]
        return torch.stack(values).sum(0)


class Valued(NamedTuple):
    """A value (B,) and its gradient in z_t, (B, *latent)."""

    value: Tensor
    gradient: Tensor


def value_and_gradient(
    estimator: ValueEstimator, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None
) -> Valued:
    """The value and its gradient by autograd, row by row independent.

    Args:
        estimator: A differentiable estimator.
        z_t: Noisy latents, (B, *latent).
        t: Their times, () or (B,).
        c: Their prompts.
        rng: One stream per row.

    Raises:
        ValueError: if the estimator is not differentiable, or its value is detached from z_t.
    """
    name = type(estimator).__name__
    if not estimator.differentiable:
        raise ValueError(f"expected a differentiable estimator, got {name}")
    with torch.enable_grad():
        z_t = z_t.detach().requires_grad_()
        value = estimator(z_t, t, c, rng)
        if not value.requires_grad:
            raise ValueError(
                f"expected a value with a gradient in z_t, got {name}'s, which is detached from "
                f"it (no_grad, detach, item, numpy ...): attach it, or set `differentiable = "
                f"False` in the class, or `gradient: false` in the suite"
            )
        value.sum().backward(inputs=[z_t])  # not autograd.grad: FLOP counters cannot follow it
    if z_t.grad is None:
        raise ValueError(f"expected a value that depends on z_t, got {name}'s")
    return Valued(value.detach(), z_t.grad)
