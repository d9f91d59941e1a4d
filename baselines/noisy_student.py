"""Noisy student: the reward model itself, retrained on decoded noisy latents.

    V(z_t) = score( r'( D(z_t) ) )

r' starts as the reward model and learns, over forward-noised data, what the reward makes of the
clean image.  It sees no noise level but what the picture shows, and pays for a decode.

Source: NoisyCLIP, as arXiv:2605.19804 compares with it (there trained on 400 million images).
"""

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from baselines.trained import build_of
from stitchvm import saved
from stitchvm.backbone import Backbone, Prompts
from stitchvm.identity import identity
from stitchvm.reward import Features, Reward
from stitchvm.value import EmbeddingEstimator, Target

CONFIG = "noisy_student.json"


class NoisyStudent(EmbeddingEstimator):
    """A reward model that reads decoded noisy latents.

    Args:
        backbone: Decodes.
        reward: The student: a reward model of its own, trained or about to be.
        gain: Of the embedding before it is made of unit length, as in `Stitched`.
    """

    def __init__(self, backbone: Backbone, reward: Reward, *, gain: float | None = None) -> None:
        super().__init__()
        self.backbone, self.reward, self.latent = backbone, reward, backbone.latent
        self.gain = None if gain is None else nn.Parameter(torch.tensor(gain))
        self.target = Target(value="mean", posterior="data")

    def features(self, z_t: Tensor, t: Tensor, c: Prompts) -> Features:
        """What the student makes of the decoded noisy latent."""
        out = self.reward.features(self.backbone.decode(z_t))
        return out if self.gain is None else out.lengthened(self.gain)

    def trained(self) -> dict[str, dict[str, nn.Parameter]]:
        """All of the student but its texts and its score; only a gain is new."""
        pretrained = {**self.reward.head_weights(), **self.reward.tail_weights(1)}
        groups = {"tail": {n: w for n, w in pretrained.items() if isinstance(w, nn.Parameter)}}
        if self.gain is not None:
            groups["layer"] = {"gain": self.gain}
        return groups

    def save_pretrained(
        self,
        folder: Path | str,
        about: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write the student into a new folder; see `Stitched.save_pretrained`."""
        described = {**self._described(), "free": self.gain is not None, "about": about or {}}
        saved.write(folder, CONFIG, described, self._parts(), dtype)

    @classmethod
    def from_pretrained(cls, folder: Path | str, backbone: Backbone, reward: Reward) -> Self:
        """A saved student, of which a copy of the reward gets the weights.

        Raises:
            FileNotFoundError: if the folder or a file of it is missing.
            ValueError: for another reward or latent, or files that are not what they were.
        """
        described, parts = saved.read(folder, CONFIG)
        made = cls(backbone, copy.deepcopy(reward), gain=1.0 if described["free"] else None)
        saved.agree(made._described(), described, folder)
        saved.fill(made._parts(), parts, folder)
        return made

    def _parts(self) -> saved.Parts:
        return {name: dict(group) for name, group in self.trained().items()}

    def _described(self) -> dict[str, Any]:
        trained = {**self.reward.head_weights(), **self.reward.tail_weights(1)}
        kept = {n: w for n, w in self.reward.state_dict().items() if n not in trained}
        return {"latent": list(self.latent), "reward": identity(kept)}


build = build_of(NoisyStudent, "noisy_student")
