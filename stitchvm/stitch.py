r"""StitchVM: the first blocks of a frozen backbone stitched to the tail of a reward model.

    V(z_t) = r^{>=j}( s( u^{<=i}(z_t) ) )                                                (Eq. 6)
    s(h)   = Up(F h) + G(Up(F h)),   G = Conv1x1 . SiLU . Conv1x1 . SiLU               (Eqs. 57-58)
    F      = argmin_W || W u^{<=i}(z_t) - r^{<=j-1}(x_0) ||^2                          (Eqs. 7, 62)

Source: Stitched Value Model for Diffusion Alignment, 2026, arXiv:2605.19804.
"""

import copy
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from stitchvm import saved
from stitchvm.backbone import Backbone, Prompts
from stitchvm.identity import identity
from stitchvm.reward import Features, Hidden, Reward
from stitchvm.value import EmbeddingEstimator, Target

Condition = Literal["null", "prompt"]
Norm = Literal["unit", "free"]

CONFIG = "stitch.json"
PARTS = ("linear", "residual", "tail", "null")  # files of a saved model
DESCRIBED = ("i", "j", "condition", "target", "grid", "latent", "backbone", "reward")
SAME = 0.02  # relative difference of null embeddings in bfloat16 and float32
BOTTLENECK = 8  # r in Eq. 58: the residual's channels are 1 : 8


class LinearFit(NamedTuple):
    """A least-squares map: weight (q, p), bias (q,), the features' rank, mean squared error."""

    weight: Tensor
    bias: Tensor
    rank: int
    loss: float


def fit_linear(features: Tensor, targets: Tensor) -> LinearFit:
    """The closed-form map from backbone features to reward features (Eq. 62), float64, on the CPU.

    Rows are tokens of all images, never images: with fewer rows than features every fit is exact
    and says nothing.  The intercept is fitted by centring.

    Args:
        features: u^{<=i}(z_t) at every token, (n, p).
        targets: r^{<=j-1}(x_0) at every token, (n, q).

    Returns:
        The fit.  Where the centred features lack full rank p, a RuntimeWarning says so and the
        weight is the solution of least norm.

    Raises:
        ValueError: if the rows differ in number, or are no more than the features.
    """
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets):  # noqa: PLR2004
        raise ValueError(
            f"expected features (n, p) and targets (n, q), got {tuple(features.shape)} and "
            f"{tuple(targets.shape)}"
        )
    rows, columns = features.shape
    if rows <= columns:
        raise ValueError(f"expected more rows (tokens) than the {columns} features, got {rows}")
    x, y = features.double().cpu(), targets.double().cpu()  # the driver that tells ranks is there
    x_mean, y_mean = x.mean(0), y.mean(0)
    solution = torch.linalg.lstsq(x - x_mean, y - y_mean, driver="gelsd")
    rank, weight = int(solution.rank), solution.solution.T
    if rank < columns:
        warnings.warn(
            f"features have rank {rank} of {columns}: returning the solution of least norm",
            RuntimeWarning,
            stacklevel=2,
        )
    bias = y_mean - weight @ x_mean
    loss = float((x @ weight.T + bias - y).square().mean())
    return LinearFit(weight, bias, rank, loss)


class StitchLayer(nn.Module):
    """s: a map of backbone features to a map of reward features (Eqs. 57-58).

    At the start G = 0, so s is the linear fit, resampled.

    Args:
        fit: F.
        size: The reward model's token grid, (H, W).
        cls: At j > 1, what [CLS] starts as, (C',): it depends on the image, which the layer does
            not see, so it is learned like the rest.
        bottleneck: r in Eq. 58.
        seed: Of the residual's first convolution; the global generator is left alone.
    """

    def __init__(
        self,
        fit: LinearFit,
        size: tuple[int, int],
        cls: Tensor | None = None,
        bottleneck: int = BOTTLENECK,
        seed: int = 0,
    ) -> None:
        super().__init__()
        out, inner = fit.weight.shape
        narrow = max(1, out // bottleneck)
        self.size = size
        self.linear = nn.Conv2d(inner, out, 1, dtype=fit.weight.dtype)
        self.linear.load_state_dict({"weight": fit.weight[:, :, None, None], "bias": fit.bias})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, last = nn.Conv2d(out, narrow, 1), nn.Conv2d(narrow, out, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.residual = nn.Sequential(nn.SiLU(), first, nn.SiLU(), last)
        self.residual.to(fit.weight.dtype)
        self.cls = None if cls is None else nn.Parameter(cls.to(fit.weight.dtype))

    def forward(self, h: Tensor) -> Tensor:
        """Reward features (B, C', H', W') of backbone features (B, C, H, W)."""
        up = resize(self.linear(h.to(self.linear.weight.dtype)), self.size)
        return up + self.residual(up)

    def enter(self, h: Tensor) -> Hidden:
        """What enters block j: the map and, at j > 1, [CLS]; at j = 1 the tail adds its own."""
        cls = None if self.cls is None else self.cls.expand(len(h), -1)
        return Hidden(self(h), cls)


def resize(h: Tensor, size: tuple[int, int]) -> Tensor:
    """A map on another token grid, bilinear; commutes with 1 x 1 convolutions."""
    if tuple(h.shape[-2:]) == tuple(size):
        return h
    return functional.interpolate(h, size=size, mode="bilinear", align_corners=False)


class Stitched(EmbeddingEstimator):
    """The value model of Eq. 6: no decode, i blocks of the backbone, the reward from block j.

    With the null prompt, as published, it aims at the mean under the `data` posterior (Eq. 8);
    what it was finetuned towards is what it aims at.

    Args:
        backbone: The frozen backbone u.
        i: Backbone blocks to run.
        layer: The stitching layer s.
        reward: The reward model r, or one with a finetuned tail.
        j: First block of the reward's tail.
        condition: What the trunk sees, the `null` prompt (published) or the `prompt`.
        gain: Of the embedding before it is made of unit length, whose mean a cosine reward needs
            (`norm=free`); None for the unit embedding (published).
        target: What it aims at; when None the mean under the posterior of what the trunk sees.

    Raises:
        ValueError: if backbone or reward has no such block.
    """

    def __init__(
        self,
        backbone: Backbone,
        i: int,
        layer: StitchLayer,
        reward: Reward,
        j: int = 1,
        *,
        condition: Condition = "null",
        gain: float | None = None,
        target: Target | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= i <= backbone.depth:
            raise ValueError(f"expected i in 1..{backbone.depth}, got {i}")
        if not 1 <= j <= reward.depth:
            raise ValueError(f"expected j in 1..{reward.depth}, got {j}")
        self.backbone, self.i, self.layer, self.reward, self.j = backbone, i, layer, reward, j
        self.condition = condition
        self.gain = None if gain is None else nn.Parameter(torch.tensor(gain))
        self.latent = backbone.latent
        seen: Literal["data", "prompt"] = "data" if condition == "null" else "prompt"
        self.target = Target(posterior=seen) if target is None else target

    def features(self, z_t: Tensor, t: Tensor, c: Prompts) -> Features:
        """What leaves the tail, with the embedding that is scored (Eq. 6)."""
        seen = None if self.condition == "null" else c
        h = self.layer.enter(self.backbone.trunk(z_t, t, self.i, seen).features)  # s(u^{<=i}(z_t))
        out = self.reward.tail(h, self.j)  # r^{>=j}
        return out if self.gain is None else out.lengthened(self.gain)

    def trained(self) -> dict[str, dict[str, nn.Parameter]]:
        """What stage 2 trains: the layer, and the reward's tail."""
        layer = dict(self.layer.named_parameters())
        if self.gain is not None:
            layer["gain"] = self.gain
        tail = self.reward.tail_weights(self.j)
        return {
            "layer": layer,
            "tail": {n: w for n, w in tail.items() if isinstance(w, nn.Parameter)},
        }

    def save_pretrained(
        self,
        folder: Path | str,
        about: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write layer, tail and what they belong to into a new folder, there whole or not at all.

            stitch.json            i, j, condition, target, grid, latent, identities, about
            linear.safetensors     F                   residual.safetensors   G, [CLS], gain
            tail.safetensors       r^{>=j}             null.safetensors       the null prompt

        Args:
            folder: What to write; must not exist.
            about: How it was made.
            dtype: Of the files; the weights' own when None.

        Raises:
            ValueError: if the folder exists, or the dtype cannot hold a weight exactly.
        """
        described = {**self._described(), "about": about or {}}
        saved.write(folder, CONFIG, described, self._parts(), dtype)

    @classmethod
    def from_pretrained(cls, folder: Path | str, backbone: Backbone, reward: Reward) -> Self:
        """A saved value model on its own backbone and reward, of which a copy gets the tail.

        Args:
            folder: As `save_pretrained` left it.
            backbone: The one that it was made on; its first i blocks and, of text, the null prompt
                saved here are enough.
            reward: The one that it was made of, as it was pretrained.

        Raises:
            FileNotFoundError: if the folder or a file of it is missing.
            ValueError: for another backbone, reward or resolution, for files that are not what
                their digests say, or hold other weights.
        """
        described, parts = saved.read(folder, CONFIG)
        saved.require(DESCRIBED, described, folder)
        saved.require(PARTS, parts, folder)
        saved.require(("linear.weight", "linear.bias"), parts["linear"], folder)
        saved.require(("residual.1.bias",), parts["residual"], folder)
        reward = copy.deepcopy(reward)
        like = next(iter(reward.tail_weights(described["j"]).values()))
        layer = _layer(parts, tuple(described["grid"])).to(like)
        gain = parts["residual"].get("gain")
        made = cls(
            backbone,
            described["i"],
            layer,
            reward,
            described["j"],
            condition=described["condition"],
            gain=None if gain is None else gain.item(),
            target=Target(**described["target"]),
        )
        saved.agree(made._described(), described, folder)
        own = made._parts()
        _compare(own.pop("null"), parts.pop("null"), folder)
        saved.fill(own, parts, folder)  # the backbone is the caller's, and stays as it is
        return made

    def _parts(self) -> saved.Parts:
        """What is saved, by file."""
        groups = self.trained()
        layer = groups["layer"]
        linear = {name: w for name, w in layer.items() if name.startswith("linear.")}
        return {
            "linear": dict(linear),
            "residual": {name: w for name, w in layer.items() if name not in linear},
            "tail": dict(groups["tail"]),
            "null": self.backbone.null_text(),
        }

    def _described(self) -> dict[str, Any]:
        """What a saved model must agree with."""
        tail = self.reward.tail_weights(self.j)
        kept = {n: w for n, w in self.reward.state_dict().items() if n not in tail}
        return {
            "i": self.i,
            "j": self.j,
            "condition": self.condition,
            "target": asdict(self.target),
            "grid": list(self.layer.size),
            "latent": list(self.latent),
            "backbone": identity(self.backbone.trunk_weights(self.i)),
            "reward": identity(kept),
        }


def _compare(mine: dict[str, Tensor], theirs: dict[str, Tensor], folder: Path | str) -> None:
    """Refuse another null prompt; rounding differs between devices and precisions."""
    same = mine.keys() == theirs.keys() and all(
        mine[key].shape == theirs[key].shape
        and (mine[key].float().cpu() - theirs[key].float()).norm()
        < SAME * theirs[key].float().norm()
        for key in theirs
    )
    if not same:
        raise ValueError(f"expected the null prompt's embedding that {folder} holds, got another")


def _layer(parts: saved.Parts, size: tuple[int, int]) -> StitchLayer:
    """A layer of the saved one's shape."""
    weight, bias = parts["linear"]["linear.weight"][..., 0, 0], parts["linear"]["linear.bias"]
    narrow = len(parts["residual"]["residual.1.bias"])
    fit = LinearFit(weight, bias, 0, 0.0)
    return StitchLayer(fit, size, parts["residual"].get("cls"), len(weight) // narrow)
