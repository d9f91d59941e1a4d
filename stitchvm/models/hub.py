"""HubStitched: a stitched value model on a hub of models, by `PyTorchModelHubMixin`.

What is saved and pushed is what `Stitched.save_pretrained` writes: the stitching layer, the
reward's tail, the null prompt's embedding, and what they belong to, by digest.  The generator and
the rest of the reward are not among it; whoever loads it brings their own.  The mixin's loading is
replaced: by default it accepts missing weights in silence, and pickles for want of safetensors.

    value = HubStitched.from_pretrained("user/name", backbone, reward, revision="v1")
    value.push_to_hub("user/name")
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from huggingface_hub import HfApi, PyTorchModelHubMixin

from stitchvm import saved
from stitchvm.backbone import Backbone
from stitchvm.models.download import locate
from stitchvm.reward import Reward
from stitchvm.stitch import CONFIG, Stitched

CARD = """---
{{ card_data }}
---

# A StitchVM

The value V(z_t | c) of noisy latents: the first {{ i }} blocks of a frozen generator, a stitching
layer, and a reward model from its block {{ j }} on ([paper]({{ paper_url }})).

| | |
|---|---|
| aims at | {{ target }} |
| its trunk sees | the {{ "null prompt" if condition == "null" else condition }} |
| latents | {{ latent }} |
| generator, digest of the first {{ i }} blocks | `{{ backbone }}` |
| reward, digest of what was not trained | `{{ reward }}` |

The generator and the rest of the reward are not part of it; bring the ones it was made of:

    value = HubStitched.from_pretrained("{{ repo_id }}", backbone, reward)

Weights made from others are under the licences of those: among them are SD 3.5 (Stability AI
Community License), FLUX.1-dev (non-commercial), DFN-CLIP (research only).
"""


class HubStitched(
    Stitched,
    PyTorchModelHubMixin,
    model_card_template=CARD,
    library_name="stitchvm-bench",
    paper_url="https://arxiv.org/abs/2605.19804",
    tags=["stitchvm", "value-model", "diffusers"],
):
    """`Stitched`, loaded from a folder or a hub, and pushed to a hub.

    Attributes:
        about: How it was made, as its folder says.
    """

    about: dict[str, Any] | None = None

    def save_pretrained(  # type: ignore[override]  # Stitched's signature, not the mixin's
        self,
        folder: Path | str,
        about: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """As `Stitched.save_pretrained`; how it was made is passed on."""
        super().save_pretrained(folder, self.about if about is None else about, dtype)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: Path | str,
        backbone: Backbone,
        reward: Reward,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """A saved value model on its own backbone and reward.

        Args:
            folder: A local folder, or a model's id on the hub: `user/name`.
            backbone: See `Stitched.from_pretrained`.
            reward: Likewise.
            revision: On the hub: a branch, tag or commit.
            token: For the hub; the one of `hf auth login` when None.
            cache_dir: Of what is downloaded.
            local_files_only: Whether to ask nobody for what is not in it.

        Raises:
            FileNotFoundError: if a file of the folder is missing.
            ValueError: if there is no such folder and the hub cannot be reached, has no such model
                or revision, or does not give it out; for a pickle, which is never opened; see
                `Stitched.from_pretrained`.
        """
        place = locate(
            folder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        made = super().from_pretrained(place, backbone, reward)
        made.about = saved.description(place, CONFIG).get("about")
        return made.eval()

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload a StitchVM",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Upload the folder and a model card in one commit; returns its address.

        Args:
            repo_id: `user/name`; made if it does not exist, once the folder is whole.
            commit_message: Of the commit.
            private: Whether a new repository is; as the account has it when None.
            token: For the hub; the one of `hf auth login` when None.
            branch: To commit to; `main` when None.
            create_pr: Whether to make a pull request of it.
        """
        api = HfApi(token=token)
        with TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self.save_pretrained(folder)
            made = api.create_repo(repo_id, private=private, exist_ok=True)
            described = {**self._described(), "target": self.target}
            card = self.generate_model_card(repo_id=made.repo_id, **described)
            card.save(folder / "README.md")
            return api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            )
