"""On a Ray cluster: each cell is a task that starts the same process on the node it is given.

Ray decides where, from what a task requests: CPU threads, a GPU where cells compute on one, and
memory where it is limited.  A task whose node is lost is run again on another.  Where a node does
not see the store, the attempt's files come back with the task's result, the record last.
"""

import importlib
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

from bench.attempt import JOB, Job
from bench.backends import Backend, Ended
from bench.child import Child, Exit
from bench.owner import OWNER
from bench.store import RECORD, commit

KNOCK = 5.0  # seconds for a cluster to answer
RETRIES = 3  # of a task whose node or worker was lost
LISTEN_EVERY = 2.0  # seconds


class Ray(Backend):
    """Runs every job as a Ray task.

    Args:
        address: Of a running cluster, `auto` to find one; None starts one on this machine.
        seconds: Wall time of each cell; None: any.

    Raises:
        ValueError: if Ray is not installed, or there is no cluster at that address.
    """

    def __init__(self, address: str | None, seconds: float | None) -> None:
        self._ray = _import()
        self.seconds = seconds
        if not self._ray.is_initialized():
            try:
                _knock(address)
                self._ray.init(address=address, log_to_driver=False, logging_level="warning")
            except OSError as error:
                raise ValueError(
                    f"expected a Ray cluster at {address!r}: {error}; `ray start --head` makes one"
                ) from None
        self.slots = max(1, 2 * int(self._ray.cluster_resources().get("CPU", 1)))  # Ray queues
        self._running: dict[Any, Path] = {}
        self._stopped = False

    @property
    def busy(self) -> int:
        """How many tasks are not done."""
        return len(self._running)

    def start(self, job: Job, attempt: Path) -> None:
        """Submit a job."""
        cuda = job.device.startswith("cuda")
        job = job.model_copy(update={"device": "cuda:0" if cuda else job.device})
        wants = {"num_cpus": job.threads, "num_gpus": int(cuda), "max_retries": RETRIES}
        if job.memory is not None:
            wants["memory"] = job.memory
        task = self._ray.remote(work).options(**wants)
        owner = (attempt / OWNER).read_bytes()
        found = task.remote(job.model_dump_json(), str(attempt), owner, self.seconds)
        self._running[found] = attempt

    def wait(self) -> list[Ended]:
        """Sleep until a task is done, or a moment."""
        if not self._running:
            return []
        done, _ = self._ray.wait(
            list(self._running), num_returns=1, timeout=LISTEN_EVERY, fetch_local=True
        )
        return [self._end(found) for found in done]

    def _end(self, found: Any) -> Ended:
        attempt = self._running.pop(found)
        try:
            how, files = self._ray.get(found)
        except self._ray.exceptions.RayError as error:
            cause = "interrupted" if self._stopped else f"lost: {type(error).__name__}"
            return Ended(attempt, Exit(0, cause))
        for name, data in sorted(files.items(), key=lambda file: file[0] == RECORD):
            commit(attempt / name, data)
        return Ended(attempt, Exit(*how))

    def stop(self) -> None:
        """Cancel all tasks."""
        self._stopped = True
        for found in self._running:
            self._ray.cancel(found, force=True)

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster."""
        self.stop()
        self._running.clear()
        self._ray.shutdown()


def _import() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ValueError(
            "expected Ray for --backend ray, got none installed: pip install 'stitchvm-bench[ray]'"
        ) from None


def _knock(address: str | None) -> None:
    """Find a cluster's port open: Ray itself would go on trying for minutes.

    Raises:
        OSError: if it is not.
    """
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=KNOCK).close()


def work(
    job_text: str, attempt: str, owner: bytes, seconds: float | None
) -> tuple[tuple[int, str | None, bool], dict[str, bytes]]:
    """Measure a job on this node, in a process of its own.

    Args:
        job_text: The `Job`, as JSON.
        attempt: Its folder where the store is.
        owner: What the folder's owner file says: how to tell whether this node sees that folder.
        seconds: Wall time of the cell; None: any.

    Returns:
        How its process ended, and the attempt's files where this node does not see the folder.
    """
    job, folder = Job.model_validate(json.loads(job_text)), Path(attempt)
    if _seen(folder, owner):
        return tuple(_measured(job, folder, seconds)), {}  # type: ignore[return-value]
    with tempfile.TemporaryDirectory(prefix="stitchbench-") as root:
        here = Path(root) / "cells" / job.cell.id / folder.name
        here.mkdir(parents=True)
        how = _measured(job, here, seconds)
        files = {p.name: p.read_bytes() for p in here.iterdir() if p.name != JOB}
    return tuple(how), files  # type: ignore[return-value]


def _seen(folder: Path, owner: bytes) -> bool:
    try:
        return (folder / OWNER).read_bytes() == owner
    except OSError:
        return False


def _measured(job: Job, folder: Path, seconds: float | None) -> Exit:
    if (folder / RECORD).is_file():  # a lost worker had got that far
        return Exit(0)
    child = Child(job, folder, seconds, {})
    try:
        return child.outlast()
    finally:
        child.close()
