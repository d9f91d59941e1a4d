"""Whether the hub of models answers, asked so that nothing can hang."""

import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from bench.doctor.finding import Finding

ADDRESS = "https://huggingface.co"
OFFLINE = "HF_HUB_OFFLINE"


def address() -> str:
    """Of the hub, or of the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", ADDRESS)


def answer(patience: float = 3.0) -> float | str:
    """Seconds until the hub answered, or why it did not.

    In a thread of its own: a name that does not resolve heeds no timeout.

    Args:
        patience: Seconds to wait.
    """
    if os.environ.get(OFFLINE, "") not in {"", "0"}:
        return f"{OFFLINE} is set"
    found: list[float | str] = []
    thread = threading.Thread(target=lambda: found.append(_asked(patience)), daemon=True)
    thread.start()
    thread.join(patience)
    return found[0] if found else f"no answer within {patience:g} s"


def _asked(patience: float) -> float | str:
    start = time.monotonic()
    try:
        request = urllib.request.Request(address(), method="HEAD")
        with urllib.request.urlopen(request, timeout=patience):
            return time.monotonic() - start
    except urllib.error.HTTPError:  # it refuses, hence it is there
        return time.monotonic() - start
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))


def reach(*, offline: bool) -> Iterator[Finding]:
    """Whether models could be fetched."""
    if offline:
        yield Finding("ok", "hub", "not asked (--offline)")
        return
    said = answer()
    if isinstance(said, float):
        yield Finding("ok", "hub", f"{address()} answers in {said:.1f} s")
    else:
        yield Finding(
            "warning",
            "hub",
            f"{address()} is out of reach: {said}",
            "the worlds gaussian and shapes need none; models of the hub must be on disk",
        )
