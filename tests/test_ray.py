"""A real Ray cluster of several nodes on this machine: the same cells, the same store."""

import json
import sys
import threading
import time

import pytest
from tiny import attempts, sweep, table_of

from bench.attempt import Job
from bench.backends.ray import work
from bench.how import INLINE, How
from bench.owner import OWNER
from bench.run import run
from bench.store import RECORD, Store

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of its processes and sockets
]


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield made
    ray.shutdown()
    made.shutdown()


def test_forty_cells_on_three_nodes_of_which_one_is_killed(cluster, tmp_path):
    cluster.add_node(num_cpus=1)
    doomed = cluster.add_node(num_cpus=1)
    cells, store = sweep(40), Store(tmp_path / "ray")
    undisturbed = Store(tmp_path / "undisturbed")
    run(cells, undisturbed, INLINE)

    def kill():
        while len(store.done()) < 8:
            time.sleep(0.2)
        cluster.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.perf_counter()
    counts = run(cells, store, How(backend="ray", address=cluster.address))
    sys.stdout.write(f"40 cells, 3 nodes, one killed: {time.perf_counter() - start:.0f} s\n")
    killer.join()
    assert counts == {"ok": 40, "error": 0, "before": 0}
    assert attempts(store, cells) == [1] * 40
    assert table_of(store).equals(table_of(undisturbed))
    assert {r["isolation"] for r in store.latest().values()} == {"process"}


def test_a_node_that_does_not_see_the_store_ships_the_records(tmp_path):
    [cell, _], store = sweep(2), Store(tmp_path / "store")
    attempt = store.begin(cell.id)
    job = Job(cell=cell).model_dump_json()
    how, files = work(job, str(tmp_path / "not here" / "0001"), b"owner", None)
    assert how == (0, None, False)
    assert {RECORD, "samples.npz", "log.txt"} <= set(files)
    assert json.loads(files[RECORD])["id"] == cell.id
    how, files = work(job, str(attempt), (attempt / OWNER).read_bytes(), None)
    assert (how, files) == ((0, None, False), {})
    assert store.done() == {cell.id}


def test_a_cluster_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="expected a Ray cluster at '127.0.0.1:1'"):
        run(sweep(2), Store(tmp_path), How(backend="ray", address="127.0.0.1:1"))


def test_cells_on_ray_against_processes(tmp_path):
    """What Ray costs a cell, beside processes, in turns on one cluster of this machine."""
    spent = {"process": 0.0, "ray": 0.0}
    ray.init(num_cpus=1, log_to_driver=False)
    for turn in range(3):
        for name, address in (("process", None), ("ray", "auto")):
            store = Store(tmp_path / f"{name}-{turn}")
            start = time.perf_counter()
            assert run(sweep(4), store, How(backend=name, address=address, jobs=1))["ok"] == 4
            spent[name] += time.perf_counter() - start
            if name == "ray":
                ray.init(num_cpus=1, log_to_driver=False)
    ray.shutdown()
    for name, seconds in spent.items():
        sys.stdout.write(f"{name}: {seconds / 12:.2f} s a cell\n")
    assert spent["ray"] < 2 * spent["process"] + 12
