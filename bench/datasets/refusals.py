"""Why the hub gave nothing, and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

PAGE = "https://huggingface.co/datasets"


@contextmanager
def from_the_hub(name: str, revision: str) -> Iterator[None]:
    """Says in a sentence what the hub's errors mean for a data set.

    Args:
        name: OWNER/NAME.
        revision: A commit, branch or tag.

    Raises:
        ValueError: for every one of them.
    """
    from huggingface_hub import errors  # noqa: PLC0415 - slow to import

    offline = (
        f"the hub is out of reach, or offline mode is set: get the files from {PAGE}/{name} on "
        f"another machine and name them by their path"
    )
    # The first that fits: a gated one is also a missing one, a local one also a missing file.
    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: (
            f"its terms must be accepted: do so on {PAGE}/{name}, then `hf auth login`"
        ),
        errors.RepositoryNotFoundError: (
            "there is none of that name, or it is private: `hf auth login` as one who may read it"
        ),
        errors.RevisionNotFoundError: f"it has no revision {revision!r}",
        errors.LocalEntryNotFoundError: offline,
        errors.OfflineModeIsEnabled: offline,
        errors.EntryNotFoundError: f"revision {revision!r} has no such file",
        errors.HfHubHTTPError: "the hub refused",
        FileNotFoundError: f"it is not there, or its terms must be accepted on {PAGE}/{name}",
        errors.HfHubHTTPError.__bases__[
            0
        ]: "the connection broke off: try again",  # any transport's
        OSError: offline,
    }
    try:
        yield
    except tuple(reasons) as error:
        why = next(text for kind, text in reasons.items() if isinstance(error, kind))
        said = f"{error}".strip().partition("\n")[0]
        raise ValueError(
            f"expected the data set {name} of the hub, got none: {why} ({said})"
        ) from error
