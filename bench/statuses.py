"""How a cell can end: a failure is a value, with a name, a reason and a place in every table.

ok            measured
oom_gpu       out of the GPU's memory
oom_host      out of the machine's memory, or of what `--mem-limit` allows
timeout       longer than `--timeout`
diverged      its numbers went to infinity or NaN
error         an exception, a signal, or an exit
invalid       it ended, but with what is no result
skipped       it declined: what was asked does not apply
interrupted   ended from outside; it counts as not run
"""

import signal
from typing import Literal, get_args

Status = Literal[
    "ok",
    "oom_gpu",
    "oom_host",
    "timeout",
    "diverged",
    "error",
    "invalid",
    "skipped",
    "interrupted",
]
STATUSES: tuple[Status, ...] = get_args(Status)
SHOWN: dict[str, str] = {  # what a table says in a failed cell's place
    **{status: status for status in STATUSES},
    "oom_gpu": "OOM",
    "oom_host": "OOM (host)",
}
OUT_OF_MEMORY = ("oom_gpu", "oom_host")
GOOD = ("ok", "skipped")  # nothing went wrong
NO_FAILURES = ("skipped", "interrupted")  # though nothing was measured

RERUNS: dict[str, tuple[str, ...]] = {  # which ended cells run again; interrupted ones always do
    "none": (),
    "failed": ("error", "timeout", "diverged", "invalid"),
    "oom": OUT_OF_MEMORY,
    "stale": (),
    "all": STATUSES,
}
GPU_MEMORY = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
HOST_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def ending(status: str) -> str:
    """What became of a cell that was not measured, in the words of a sentence."""
    return status if status in NO_FAILURES else "failed"


def out_of_memory(message: str) -> Status | None:
    """Which memory a message says is used up, None where it says none."""
    if any(phrase in message for phrase in GPU_MEMORY):
        return "oom_gpu"
    return "oom_host" if any(phrase in message for phrase in HOST_MEMORY) else None


def of_exit(code: int, last_line: str) -> tuple[Status, str]:
    """The status and the reason of a process that ended without a record.

    Args:
        code: As `subprocess` returns it, the negative number of a signal.
        last_line: Of its log.
    """
    how = f"code {code}" if code >= 0 else signal.Signals(-code).name
    reason = f"its process ended with {how}: {last_line}".removesuffix(": ")
    return out_of_memory(last_line) or "error", reason
