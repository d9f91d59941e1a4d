"""The A/A test: a value estimator timed against itself, in turns, in a fresh process each time.

Two worlds are built, equal but for where they lie in memory, as two methods' are, and Tweedie's
value and its gradient are asked of both, A B A B ..., as timing tables do.  Whatever difference
shows is the machine's own.

`python -m bench.calibration WORLD DEVICE THREADS CALLS OUT` does so in one process: what
`calibrate` starts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROCESSES, CALLS = 10, 20
FEWEST = 3  # of either: with fewer, a spread is hardly known
BATCH, SIGMA = 2, 0.5  # of the latents that are asked about


def calibrate(
    world: str = "shapes",
    *,
    device: str = "cpu",
    threads: int = 1,
    processes: int = PROCESSES,
    calls: int = CALLS,
    tell: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Time a method against itself.

    Args:
        world: Whose models are asked.
        device: Where to compute.
        threads: CPU threads of a process.
        processes: How many, one after the other.
        calls: Timed calls of either arm in each.
        tell: Takes the number of processes that have ended.

    Returns:
        When, where and with what; and by workload the seconds of both arms, (processes, calls).

    Raises:
        ValueError: if there is no such world or device, or a process fails.
    """
    started, parts = datetime.now(UTC).isoformat(timespec="seconds"), []
    for done in range(processes):
        parts.append(_spawned(world, device, threads, calls))
        tell(done + 1)
    seconds = {
        workload: {arm: [part["seconds"][workload][arm] for part in parts] for arm in arms}
        for workload, arms in parts[0]["seconds"].items()
    }
    return {**parts[0], "started": started, "world": world, "batch": BATCH, "seconds": seconds}


def _spawned(world: str, device: str, threads: int, calls: int) -> dict[str, Any]:
    """What one fresh process measured."""
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "bench.calibration", world, device, str(threads)]
        done = subprocess.run(
            [*command, str(calls), str(out)],
            env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise ValueError(
                f"expected the timing process to end well, got exit code {done.returncode}: {last}"
            )
        return json.loads(out.read_bytes())


def timed(world: str, device: str, calls: int) -> dict[str, Any]:
    """Seconds of both arms by workload, with where they were measured: the work of one process."""
    import torch  # noqa: PLC0415 - slow, and the parent needs none of it

    from bench.environment import environment  # noqa: PLC0415
    from bench.interleaved import UNITS, clock_of, interleaved  # noqa: PLC0415

    place = torch.device(device)
    found = {
        name: interleaved(arms, calls, clock_of(place))
        for name, arms in _workloads(world, device).items()
    }
    return {"environment": environment(device), "unit": UNITS[place.type], "seconds": found}


def _workloads(world: str, device: str) -> dict[str, dict[str, Callable[[], Any]]]:
    """By workload, one call of each of two equal arms."""
    from functools import partial  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from baselines import ESTIMATORS  # noqa: PLC0415
    from bench.resolve import resolve  # noqa: PLC0415
    from bench.tasks.cost import value  # noqa: PLC0415
    from bench.worlds import WORLDS  # noqa: PLC0415
    from stitchvm.value import value_and_gradient  # noqa: PLC0415

    asked: dict[str, Callable[..., Any]] = {"value": value, "gradient": value_and_gradient}
    calls: dict[str, dict[str, Callable[[], Any]]] = {name: {} for name in asked}
    for arm in ("first", "second"):
        made = resolve(world, WORLDS, "world")(device=device)
        estimator = ESTIMATORS["tweedie"](made, made.reward(made.rewards[0]), posterior="data")
        z = made.backbone.empty_latents(BATCH)
        z.copy_(torch.randn(z.shape, generator=torch.Generator().manual_seed(0)))
        given = (z, z.new_tensor(SIGMA), [made.prompts[0]] * BATCH)
        for name, ask in asked.items():
            calls[name][arm] = partial(ask, estimator.requires_grad_(requires_grad=False), *given)
    return calls


def _main(arguments: Sequence[str]) -> None:
    from bench.attempt import set_threads  # noqa: PLC0415

    world, device, threads, calls, out = arguments
    set_threads(int(threads))
    Path(out).write_text(json.dumps(timed(world, device, int(calls))))


if __name__ == "__main__":
    _main(sys.argv[1:])
