"""Where a saved value model lies: in a local folder, or in one downloaded from a hub of models.

Pickles, which may run anything when they are read, are neither downloaded nor opened.
"""

from pathlib import Path

from huggingface_hub import snapshot_download

from stitchvm.models.refusals import from_the_hub
from stitchvm.stitch import CONFIG

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def locate(
    folder: Path | str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder of a saved value model, downloaded where it is a model's id on the hub.

    Args:
        folder: A local folder, or the id: `user/name`.
        revision: On the hub: a branch, tag or commit.
        token: For the hub; the one of `hf auth login` when None.
        cache_dir: Of what is downloaded.
        local_files_only: Whether to ask nobody for what is not in it.

    Raises:
        ValueError: if there is neither such a folder nor such a model, or the hub does not answer
            or does not give it out; for a file, or a folder of pickles.
    """
    if _local(Path(folder)):
        return Path(folder)
    with from_the_hub(str(folder), revision):
        return Path(
            snapshot_download(
                str(folder),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=[CONFIG, "*.safetensors"],
            )
        )


def _local(path: Path) -> bool:
    """Whether it is a local folder; if not, it may be a model's id on the hub."""
    if path.is_file():
        raise ValueError(
            f"expected a folder of safetensors or a model's id on the hub, got the file {path}: "
            f"other files, such as pickles, are never opened"
        )
    if not path.is_dir():
        return False
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles and not (path / CONFIG).is_file():
        raise ValueError(
            f"expected {CONFIG} and safetensors in {path}, got {', '.join(pickles)}: pickles may "
            f"run anything when they are read, and are never opened"
        )
    return True
