r"""StitchVM: the first blocks of a frozen backbone stitched to the tail of a reward model.

    V(z_t) = r^{>=j}( s( u^{<=i}(z_t) ) )                                                (Eq. 6)
    s(h)   = Up(F h) + G(Up(F h)),   G = Conv1x1 . SiLU . Conv1x1 . SiLU               (Eqs. 57-58)
    F      = argmin_W || W u^{<=i}(z_t) - r^{<=j-1}(x_0) ||^2                          (Eqs. 7, 62)

Source: Stitched Value Model for Diffusion Alignment, 2026, arXiv:2605.19804.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stitchvm.backbone import Backbone, Prompts
from stitchvm.reward import Hidden, Reward
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator

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
        bottleneck: r in Eq. 58.
        seed: Of the residual's first convolution; the global generator is left alone.
    """

    def __init__(
        self,
        fit: LinearFit,
        size: tuple[int, int],
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

    def forward(self, h: Tensor) -> Tensor:
        """Reward features (B, C', H', W') of backbone features (B, C, H, W)."""
        up = resize(self.linear(h), self.size)
        return up + self.residual(up)


def resize(h: Tensor, size: tuple[int, int]) -> Tensor:
    """A map on another token grid, bilinear; commutes with 1 x 1 convolutions."""
    if tuple(h.shape[-2:]) == tuple(size):
        return h
    return functional.interpolate(h, size=size, mode="bilinear", align_corners=False)


class Stitched(ValueEstimator):
    """The value model of Eq. 6: no decode, i blocks of the backbone, the reward from block j.

    The trunk sees the null prompt, so it aims at the mean under the `data` posterior (Eq. 8).

    Args:
        backbone: The frozen backbone u.
        i: Backbone blocks to run.
        layer: The stitching layer s.
        reward: The reward model r.
        j: First block of the reward's tail.
    """

    def __init__(
        self, backbone: Backbone, i: int, layer: StitchLayer, reward: Reward, j: int = 1
    ) -> None:
        super().__init__()
        if not 1 <= i <= backbone.depth:
            raise ValueError(f"expected i in 1..{backbone.depth}, got {i}")
        if not 1 <= j <= reward.depth:
            raise ValueError(f"expected j in 1..{reward.depth}, got {j}")
        self.backbone, self.i, self.layer, self.reward, self.j = backbone, i, layer, reward, j
        self.latent = backbone.latent
        self.target = Target(value="mean", posterior="data")

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value V(z_t), (B,) (Eq. 6)."""
        h = self.layer(self.backbone.trunk(z_t, t, self.i).features)  # s(u^{<=i}(z_t))
        e = self.reward.tail(Hidden(h), self.j).embedding  # r^{>=j}
        return self.reward.score(e, c)
