"""What the harness itself costs: beside a cell of ten seconds, and with two thousand records."""

import gc
import resource
import subprocess
import sys
import time

import pytest
from tiny import DEFAULTS, planned

from bench import suite as suites
from bench.how import INLINE, How
from bench.plan import plan
from bench.run import run
from bench.store import Store

pytestmark = pytest.mark.slow
SLEEPER = """
import time
from baselines.constant import build as constant

def build(world, reward):
    time.sleep(10)
    return constant(world, reward)
"""
MANY = 2000


def test_a_cell_of_ten_seconds_pays_two_percent_for_the_harness_at_most(tmp_path):
    """Interpreter and imports apart, which are a phase of their own."""
    file = tmp_path / "sleeper.py"
    file.write_text(SLEEPER)
    store, cells = Store(tmp_path / "store"), planned(estimator=[f"{file}:build"])
    gc.collect()  # what imports left takes a tenth of a second, now or in the middle
    wall, cpu = time.perf_counter(), time.process_time()
    run(cells, store, How())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    [record] = store.latest().values()
    spent = record["phases"]
    measured = sum(spent[name] for name in ("build", "latents", "measured", "reference", "start"))
    sys.stdout.write(f"harness {1 - measured / wall:.2%} of wall, parent {cpu / wall:.2%} CPU\n")
    assert spent["build"] > 10
    assert wall - measured < 0.02 * wall
    assert cpu < 0.02 * wall


def many():
    """Two thousand cells: estimators, rewards, sizes."""
    defaults = DEFAULTS | {"sigmas": [0.25], "prompts": 2}
    rivals = [{"name": f"e{k}", "build": "monte_carlo", "particles": k + 1} for k in range(250)]
    axes = {"estimator": rivals, "reward": ["quadratic", "linear"], "members": [1, 2, 3, 4]}
    return suites.Suite(name="many", about="-", minutes=1, defaults=defaults, axes=axes)


def test_two_thousand_cells_are_planned_in_two_seconds():
    plan(many(), only="estimator=e1 & reward=linear")  # imports
    start = time.process_time()
    cells = plan(many())
    spent = time.process_time() - start
    sys.stdout.write(f"{len(cells)} cells planned in {spent:.2f} s\n")
    assert len(cells) == MANY
    assert spent < 2


def test_two_thousand_records_are_reported_in_twenty_seconds_and_a_gibibyte(tmp_path):
    store, cells = Store(tmp_path / "store"), plan(many())
    run(cells[:1], store, INLINE)
    [record] = store.records()
    for name in ("attempt", "log", "checksum"):
        record.pop(name, None)
    arrays = store.samples(cells[0].id, "0001")
    for cell in cells[1:]:
        store.write(
            store.begin(cell.id), record | cell.model_dump(mode="json") | {"id": cell.id}, arrays
        )
    code = "from bench.cli import main; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, "report", str(store.path)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = after.ru_maxrss * 1024  # of the largest child so far
    sys.stdout.write(f"{MANY} records reported in {spent:.1f} s, {size / 2**30:.2f} GiB\n")
    assert spent < 20
    assert size < 2**30
