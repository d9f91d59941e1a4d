"""Why the hub gave nothing, and what to do about it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # not the hub's doing
HUB = "https://huggingface.co"
FOLDERS = {"model": "", "data set": "datasets/"}  # of the hub's pages


@contextmanager
def from_the_hub(
    name: str,
    revision: str | None,
    kind: Literal["model", "data set"] = "model",
    terms: str = "its terms",
) -> Iterator[None]:
    """Says in a sentence what the hub's errors mean for a model or a data set.

    Args:
        name: OWNER/NAME.
        revision: A commit, branch or tag; None for the newest.
        kind: What it is.
        terms: What must be accepted where it is gated.

    Raises:
        ValueError: for every one of them.
    """
    from huggingface_hub import errors  # noqa: PLC0415 - slow to import

    page = f"{HUB}/{FOLDERS[kind]}{name}"
    offline = (
        f"the hub is out of reach, or offline mode is set: get the files from {page} on another "
        f"machine and name them by their path"
    )
    # The first that fits: a gated one is also a missing one, a local one also a missing file.
    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: (
            f"{terms} must be accepted: do so on {page}, then `hf auth login`"
        ),
        errors.RepositoryNotFoundError: (
            "there is none of that name, or it is private: `hf auth login` as one who may read it"
        ),
        errors.RevisionNotFoundError: f"it has no revision {revision!r}",
        errors.HFValidationError: "it is neither a folder nor a name such as OWNER/NAME",
        errors.LocalEntryNotFoundError: offline,
        errors.OfflineModeIsEnabled: offline,
        errors.EntryNotFoundError: f"revision {revision!r} has no such file",
        errors.HfHubHTTPError: "the hub refused",
        FileNotFoundError: f"it is not there, or {terms} must be accepted on {page}",
        errors.HfHubHTTPError.__bases__[
            0
        ]: "the connection broke off: try again",  # any transport's
        OSError: offline,
    }
    try:
        yield
    except tuple(reasons) as error:
        why = next(text for kind, text in reasons.items() if isinstance(error, kind))
        if isinstance(error, OSError) and error.errno in OURS:
            why = "this machine could not keep it"
        said = f"{error}".strip().partition("\n")[0]
        raise ValueError(
            f"expected the {kind} {name} of the hub, got none: {why} ({said})"
        ) from error
