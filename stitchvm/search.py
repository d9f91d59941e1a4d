r"""Stage 1 of StitchVM: a linear fit for every pair (i, j) from one pass, and which pair to take.

    W*_ij = argmin_W || W u^{<=i}(z_t) - r^{<=j-1}(x_0) ||^2,   t ~ U[0, 1]      (Eqs. 7, 59-62)

Rows are the tokens of all images, on the reward's token grid: resampling and a 1 x 1 convolution
commute, so features are resampled once.  Every image passes once through all blocks; what is kept
of block i is the triangular factor of its features and their projection on all targets, so one
factorisation serves every j.

Source: arXiv:2605.19804, section 4.1.
"""

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor

from stitchvm.backbone import Backbone
from stitchvm.flops import count_flops
from stitchvm.identity import file_digest
from stitchvm.least_squares import LeastSquares
from stitchvm.path import noise
from stitchvm.reward import Hidden, Reward
from stitchvm.saved import put
from stitchvm.stitch import LinearFit, resize
from stitchvm.streams import Streams

ENTRIES = 4  # j <= 4: entered later, a reward does not recover (Fig. 6)
NEAR = 0.05  # the cheap pick may lose this share of the lowest held-out loss
TABLE, FITS = "search.json", "fits.safetensors"

Source = Literal["pixels", "latents"]  # what the reward sees: x_0, or D(z_0)


@dataclass(frozen=True)
class Pair:
    """How well block i of the backbone predicts what enters block j of the reward.

    Attributes:
        i: Backbone blocks.
        j: First block of the reward's tail.
        loss: Mean squared error on the probe set, over channels and tokens (Eq. 7).
        normalised: Mean over channels of their errors, each over the channel's variance.
        r2: 1 - error / variance, all channels together.
        held_loss: The same three on held-out images.
        held_normalised: Likewise.
        held_r2: Likewise.
        rank: Of the centred features; their number in full rank.
        features: Their number.
        cost: Of trunk and tail for one latent, in FLOPs; the layer between is left out.
    """

    i: int
    j: int
    loss: float
    normalised: float
    r2: float
    held_loss: float
    held_normalised: float
    held_r2: float
    rank: int
    features: int
    cost: float


class Interface(NamedTuple):
    """Where a stitching layer starts: its linear map, and the mean [CLS] that enters block j."""

    fit: LinearFit
    cls: Tensor | None


@dataclass(frozen=True)
class Search:
    """What stage 1 found.

    Attributes:
        pairs: All of them.
        interfaces: Where the layer of each kept pair starts.
        about: What was searched: names, digests, images, seed.
    """

    pairs: tuple[Pair, ...]
    interfaces: dict[tuple[int, int], Interface]
    about: dict[str, Any]

    @property
    def picks(self) -> dict[str, Pair]:
        """`paper`: lowest loss; `cheap`: the cheapest within 5 % of the lowest held-out loss."""
        return {
            "paper": min(self.pairs, key=lambda pair: pair.loss),
            "cheap": min(self.near, key=lambda pair: pair.cost),
        }

    @property
    def near(self) -> tuple[Pair, ...]:
        """The pairs within 5 % of the lowest held-out loss."""
        lowest = min(pair.held_loss for pair in self.pairs)
        return tuple(pair for pair in self.pairs if pair.held_loss <= (1 + NEAR) * lowest)

    def save(self, folder: Path) -> None:
        """Write the table, and the layers of the picks and of all pairs near them, to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for pair in dict.fromkeys([*self.near, *self.picks.values()]):
            name, interface = f"{pair.i},{pair.j}", self.interfaces[pair.i, pair.j]
            tensors |= {f"{name}.weight": interface.fit.weight, f"{name}.bias": interface.fit.bias}
            if interface.cls is not None:
                tensors[f"{name}.cls"] = interface.cls
        layers = save({k: v.clone().contiguous() for k, v in tensors.items()})
        table = {
            "fits": file_digest(layers),
            "about": self.about,
            "picks": {name: [pair.i, pair.j] for name, pair in self.picks.items()},
            "pairs": [asdict(pair) for pair in self.pairs],
        }
        put(folder / FITS, layers)
        put(folder / TABLE, (json.dumps(table, indent=1) + "\n").encode())


def load(folder: Path) -> Search:
    """A search from its folder, with the layers that it kept.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if its layers are not those of its table.
    """
    if not (folder / TABLE).is_file():
        raise FileNotFoundError(f"expected a search in {folder}, got no {TABLE}")
    table = json.loads((folder / TABLE).read_text())
    pairs = tuple(Pair(**pair) for pair in table["pairs"])
    layers = (folder / FITS).read_bytes()
    if (digest := file_digest(layers)) != table["fits"]:
        raise ValueError(f"expected {folder / FITS} with digest {table['fits']}, got {digest}")
    tensors, interfaces = load_tensors(layers), {}
    for pair in pairs:
        name = f"{pair.i},{pair.j}"
        if f"{name}.weight" in tensors:
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            fit = LinearFit(weight, bias, pair.rank, pair.loss)
            interfaces[pair.i, pair.j] = Interface(fit, tensors.get(f"{name}.cls"))
    return Search(pairs, interfaces, table["about"])


class _Rows(NamedTuple):
    """Tokens of one batch: features of each block, (n, p_i), targets of each entry, (n, q_j)."""

    features: dict[int, Tensor]
    targets: dict[int, Tensor]
    cls: dict[int, Tensor]


@dataclass(frozen=True)
class Settings:
    """How stage 1 is run.

    Attributes:
        entries: Which j; None for 1 to 4, where the reward has as many blocks.
        source: What the reward sees of an image, its pixels (published) or its decoded latents.
        ridge: As `LeastSquares.solve` takes it.
        seed: Of times and noise.
    """

    entries: tuple[int, ...] | None = None
    source: Source = "pixels"
    ridge: float = 0.0
    seed: int = 0


@torch.no_grad()
def search(
    backbone: Backbone,
    reward: Reward,
    probe: Iterable[Tensor],
    held: Iterable[Tensor],
    *,
    settings: Settings = Settings(),
) -> Search:
    """Fit every pair on the probe set, and judge it on held-out images.

    Args:
        backbone: The frozen backbone.
        reward: The reward model.
        probe: Clean images x_0 in batches, (B, 3, H, W) in [-1, 1].
        held: Others, likewise.
        settings: How.

    Raises:
        ValueError: for j beyond the reward's blocks, or a set of no images or equal ones.
    """
    entries = _entries(settings, reward)
    seen = _Pass(backbone, reward, entries, settings)
    where = _exact(backbone)
    sums: dict[int, LeastSquares] = {}
    cls: dict[int, list[Tensor]] = {}
    widths: list[int] = []
    for rows in seen.rows(probe, "probe"):
        y = torch.cat(list(rows.targets.values()), 1).to(where, torch.float64)
        widths = [target.shape[1] for target in rows.targets.values()]
        for i, x in rows.features.items():
            sums.setdefault(i, LeastSquares(x.shape[1], y.shape[1], where)).add(x, y)
        for j, token in rows.cls.items():
            cls.setdefault(j, []).append(token.cpu().double())
    means = {j: torch.cat(parts).mean(0) for j, parts in cls.items()}
    solved, inside = {}, {}
    for i in list(sums):
        known = sums.pop(i)  # a factor of a block of full size takes 200 MB
        weight, bias, rank = solved[i] = known.solve(settings.ridge)
        inside[i] = known.errors(weight, bias)
        if rank < weight.shape[1]:
            warnings.warn(
                f"features of block {i} have rank {rank} of {weight.shape[1]}: taking the "
                f"solution of least norm",
                RuntimeWarning,
                stacklevel=2,
            )
    outside = _judge(solved, seen.rows(held, "held"))
    trunk, tail = _flops(backbone, reward, entries)
    pairs, interfaces = [], {}
    for i, (weight, bias, rank) in solved.items():
        parts = [column.split(widths) for column in (*inside[i], *outside[i], bias, weight)]
        for j, (error, spread, held_error, held_spread, b, w) in zip(
            entries, zip(*parts, strict=True), strict=True
        ):
            figures = (*_figures(error, spread), *_figures(held_error, held_spread))
            pair = Pair(i, j, *figures, rank, weight.shape[1], trunk[i] + tail[j])
            pairs.append(pair)
            fit = LinearFit(w.cpu(), b.cpu(), rank, pair.loss)
            interfaces[i, j] = Interface(fit, means.get(j))
    return Search(tuple(pairs), interfaces, asdict(settings))


def _exact(backbone: Backbone) -> torch.device:
    """Where float64 is computed: beside the backbone, unless its device has none."""
    device = backbone.empty_latents(0).device
    return torch.device("cpu") if device.type == "mps" else device


def _entries(settings: Settings, reward: Reward) -> tuple[int, ...]:
    """The j of a search, checked."""
    entries = settings.entries
    if entries is None:
        entries = tuple(range(1, min(ENTRIES, reward.depth) + 1))
    if wrong := [j for j in entries if not 1 <= j <= reward.depth]:
        raise ValueError(f"expected entries j in 1..{reward.depth}, got {wrong}")
    if not entries or list(entries) != sorted(set(entries)):
        raise ValueError(f"expected entries j that rise, got {entries}")
    return entries


class _Pass(NamedTuple):
    """One pass of images through both models."""

    backbone: Backbone
    reward: Reward
    entries: tuple[int, ...]
    settings: Settings

    def rows(self, images: Iterable[Tensor], name: str) -> Iterator[_Rows]:
        """Features and targets of each batch, every image through every block once."""
        first, one, differ = 0, None, False
        for x_0 in images:
            one = x_0[0] if one is None else one
            differ = differ or not torch.equal(x_0, one.expand_as(x_0))
            z_0 = self.backbone.encode(x_0)
            rng = Streams.of(self.settings.seed, "search", name, rows=first + len(z_0))[first:]
            first += len(z_0)
            t = rng.child("t").uniform(z_0.dtype).to(z_0.device)
            z_t = noise(z_0, t, rng.child("eps").normal(z_0))
            x = self.backbone.decode(z_0) if self.settings.source == "latents" else x_0
            entering = self._entering(x)
            height, width = entering[self.entries[0]].map.shape[-2:]
            yield _Rows(
                {i: tokens_of(resize(h, (height, width))) for i, h in self._features(z_t, t)},
                {j: tokens_of(h.map) for j, h in entering.items()},
                {j: h.cls for j, h in entering.items() if h.cls is not None},
            )
        if not first:
            raise ValueError(f"expected at least one image in the {name} set, got none")
        if not differ:
            raise ValueError(f"expected images that differ in the {name} set, got equal ones")

    def _features(self, z_t: Tensor, t: Tensor) -> Iterator[tuple[int, Tensor]]:
        state = self.backbone.trunk(z_t, t, 1)
        for i in range(1, self.backbone.depth + 1):
            state = self.backbone.advance(state, i)
            yield i, state.features

    def _entering(self, x: Tensor) -> dict[int, Hidden]:
        h, before, entering = self.reward.head(x, 1), 1, {}
        for j in self.entries:
            h, before = self.reward.advance(h, before, j), j
            entering[j] = h
        return entering


@torch.no_grad()
def _flops(
    backbone: Backbone, reward: Reward, entries: tuple[int, ...]
) -> tuple[dict[int, int], dict[int, int]]:
    """FLOPs of one latent through i blocks, and of one map through the tail from j."""
    z_t = backbone.empty_latents(1).zero_()
    t = torch.full((), 0.5).to(z_t)
    first = reward.head(backbone.decode(z_t), 1)
    entering = {j: reward.advance(first, 1, j) for j in entries}
    state = backbone.trunk(z_t, t, 1)  # the null text is remembered after it
    trunk = {1: count_flops(partial(backbone.trunk, z_t, t, 1), z_t.device)}
    for i in range(2, backbone.depth + 1):
        trunk[i] = trunk[i - 1] + count_flops(partial(backbone.advance, state, i), z_t.device)
        state = backbone.advance(state, i)
    tails = {j: partial(reward.tail, entering[j], j) for j in entries}
    return trunk, {j: count_flops(tail, z_t.device) for j, tail in tails.items()}


def tokens_of(h: Tensor) -> Tensor:
    """A map (B, C, H, W) as rows, one per token, (B H W, C)."""
    return h.movedim(1, -1).flatten(0, 2)


def _judge(
    solved: dict[int, tuple[Tensor, Tensor, int]], batches: Iterable[_Rows]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Mean squared error and variance of each target on other rows, (q,) each, for each i."""
    errors: dict[int, Tensor] = {}
    known = next(iter(solved.values()))[1]
    count, total, square = 0, known.new_zeros(()), known.new_zeros(())
    for rows in batches:
        y = torch.cat(list(rows.targets.values()), 1).to(known)
        count, total, square = count + len(y), total + y.sum(0), square + y.square().sum(0)
        for i, (weight, bias, _) in solved.items():
            off = rows.features[i].to(known) @ weight.T + bias - y
            errors[i] = errors.get(i, known.new_zeros(())) + off.square().sum(0)
    spread = square / count - (total / count).square()
    return {i: (error / count, spread) for i, error in errors.items()}


def _figures(error: Tensor, spread: Tensor) -> tuple[float, float, float]:
    """Loss, normalised loss and R^2 of channels' errors and variances, (q,) each.

    Channels that never vary have nothing to explain: they count in the loss alone.
    """
    varied = spread > torch.finfo(spread.dtype).eps * spread.max()
    normalised = (error[varied] / spread[varied]).mean()
    return error.mean().item(), normalised.item(), (1 - error.sum() / spread.sum()).item()
