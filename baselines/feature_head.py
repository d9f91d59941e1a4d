"""Feature head: a small head on several blocks of the frozen backbone, without a reward's tail.

    V(z_t) = score( pool_q( sum_k FiLM_k( u^{<=i_k}(z_t), t ) ) )

Each tapped block is normalised, mapped to one width, scaled and shifted by what the noise level
says (FiLM), and added up; learned queries pool the tokens by attention; an MLP makes the reward's
embedding of them.  What it lacks against StitchVM is the pretrained tail; what it has besides is
the noise level.

Source: DiNa-LRM, as arXiv:2605.19804 compares with it (there trained on preferences; here, as all
rivals, on the reward's own embeddings).
"""

import math
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.trained import build_of
from stitchvm import saved
from stitchvm.backbone import Backbone, Prompts
from stitchvm.identity import identity
from stitchvm.reward import Features, Reward
from stitchvm.value import EmbeddingEstimator, Target

CONFIG = "feature_head.json"
FREQUENCIES = 32  # of the noise level's embedding
HIGHEST = 1000.0  # of them, in radians: the timesteps of diffusers
WIDTH, QUERIES, HEADS = 128, 4, 4


class Head(nn.Module):
    """Embeddings of tapped features.

    Args:
        channels: Of each tapped block.
        out: Size of the embedding.
        width: Of tokens inside.
    """

    def __init__(self, channels: tuple[int, ...], out: int, width: int = WIDTH) -> None:
        super().__init__()
        self.channels, self.out, self.width = channels, out, width
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.maps = nn.ModuleList(nn.Linear(c, width) for c in channels)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU())
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in channels)
        self.queries = nn.Parameter(torch.randn(QUERIES, width) / width**0.5)
        self.pool = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.last = nn.Sequential(
            nn.LayerNorm(QUERIES * width),
            nn.Linear(QUERIES * width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, out),
        )

    def forward(self, taps: list[Tensor], t: Tensor) -> Tensor:
        """Embeddings (B, D') of feature maps (B, C_k, H, W) at times (B,)."""
        time = self.time(_waves(t))
        h = torch.zeros(())
        for x, norm, map_, film in zip(taps, self.norms, self.maps, self.films, strict=True):
            scale, shift = film(time)[:, None].chunk(2, -1)
            h = h + (1 + scale) * map_(norm(x.flatten(2).transpose(1, 2))) + shift
        queries = self.queries.expand(len(t), -1, -1)
        pooled, _ = self.pool(queries, h, h, need_weights=False)
        return self.last(pooled.flatten(1))


def _waves(t: Tensor) -> Tensor:
    """Sines and cosines of times (B,), (B, 2 FREQUENCIES)."""
    rising = torch.arange(FREQUENCIES, device=t.device) / (FREQUENCIES - 1)
    angles = t[:, None] * (rising * math.log(HIGHEST)).exp().to(t)
    return torch.cat([angles.sin(), angles.cos()], -1)


class FeatureHead(EmbeddingEstimator):
    """A head on the features of a frozen backbone.

    Args:
        backbone: The frozen backbone.
        taps: Blocks whose features it reads, rising.
        head: The head.
        reward: Scores its embeddings.
        unit: Whether embeddings are made of unit length; else they aim at the mean embedding.

    Raises:
        ValueError: if the backbone has no such blocks.
    """

    def __init__(
        self,
        backbone: Backbone,
        taps: tuple[int, ...],
        head: Head,
        reward: Reward,
        *,
        unit: bool = False,
    ) -> None:
        super().__init__()
        if not taps or list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1]:
            raise ValueError(f"expected blocks that rise from 1, got {taps}")
        if taps[-1] > backbone.depth:
            raise ValueError(f"expected blocks in 1..{backbone.depth}, got {taps}")
        self.backbone, self.taps, self.head, self.reward = backbone, tuple(taps), head, reward
        self.unit, self.latent = unit, backbone.latent
        self.target = Target(value="mean", posterior="data")

    def features(self, z_t: Tensor, t: Tensor, c: Prompts) -> Features:
        """The head's embedding; there are no tokens."""
        state = self.backbone.trunk(z_t, t, self.taps[0])
        maps = [state.features]
        for i in self.taps[1:]:
            state = self.backbone.advance(state, i)
            maps.append(state.features)
        raw = self.head(maps, t.expand(len(z_t)).to(state.features))
        e = functional.normalize(raw, dim=-1) if self.unit else raw
        return Features(e.new_empty(len(e), 0, 0), e, raw)

    def trained(self) -> dict[str, dict[str, nn.Parameter]]:
        """The head."""
        return {"layer": dict(self.head.named_parameters())}

    def save_pretrained(
        self,
        folder: Path | str,
        about: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write the head into a new folder; see `Stitched.save_pretrained`."""
        shape = {"channels": self.head.channels, "out": self.head.out, "width": self.head.width}
        described = {**self._described(), "head": shape, "unit": self.unit, "about": about or {}}
        saved.write(folder, CONFIG, described, {"head": self.trained()["layer"]}, dtype)  # type: ignore[dict-item]

    @classmethod
    def from_pretrained(cls, folder: Path | str, backbone: Backbone, reward: Reward) -> Self:
        """A saved head on its own backbone and reward.

        Raises:
            FileNotFoundError: if the folder or a file of it is missing.
            ValueError: for another backbone or reward, or files that are not what they were.
        """
        described, parts = saved.read(folder, CONFIG)
        shape = described["head"]
        head = Head(tuple(shape["channels"]), shape["out"], shape["width"])
        head = head.to(next(iter(backbone.trunk_weights(described["taps"][-1]).values())))
        made = cls(backbone, tuple(described["taps"]), head, reward, unit=described["unit"])
        saved.agree(made._described(), described, folder)
        saved.fill({"head": made.trained()["layer"]}, parts, folder)  # type: ignore[dict-item]
        return made

    def _described(self) -> dict[str, Any]:
        return {
            "taps": list(self.taps),
            "latent": list(self.latent),
            "backbone": identity(self.backbone.trunk_weights(self.taps[-1])),
            "reward": identity(self.reward.state_dict()),
        }


build = build_of(FeatureHead, "feature_head")
