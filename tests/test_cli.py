"""stitchbench as its users meet it: help, lists, runs, refusals, a stranger's own estimator."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from bench import published
from bench import suite as suites
from bench.attempt import Job, head
from bench.cli import COMMANDS, cli
from bench.plan import plan
from bench.report.views import VIEWS
from bench.resolve import load_file
from bench.statuses import SHOWN, STATUSES
from bench.store import Store
from bench.worlds import WORLDS

STRANGER = '''
"""Half of Tweedie: a stranger's estimator."""

from stitchvm.path import denoise
from stitchvm.value import Target, ValueEstimator


class Half(ValueEstimator):
    def __init__(self, backbone, reward, factor):
        super().__init__()
        self.backbone, self.reward, self.factor = backbone, reward, factor
        self.latent, self.target = backbone.latent, Target("mean", "prompt")

    def forward(self, z_t, t, c, rng=None):
        z_0 = denoise(z_t, t, self.backbone.velocity(z_t, t, c))
        return self.factor * self.reward(self.backbone.decode(z_0), c)


def build(world, reward, *, factor: float = 0.5):
    return Half(world.backbone, reward, factor)
'''
WORLD = {"build": "gaussian", "latent": [2, 2, 1], "components": 3, "rank": 2, "prompts": 4}
SUITE = {
    "name": "mine",
    "about": "a stranger's suite",
    "minutes": 0.1,
    "isolation": "inline",
    "defaults": {"world": WORLD, "reward": "quadratic", "prompts": 3, "calls": 1}
    | {"sigmas": [0.25, 0.75], "replicates": 2},
    "axes": {"estimator": ["truth", "constant", "tweedie"]},
}


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def said(*arguments):
    """What a refusal says, its line breaks apart."""
    return " ".join(call(*arguments, code=2).split())


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return path


def test_help_is_quick_and_imports_nothing_slow():
    code = (
        "import sys\nfrom bench.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "slow = {'torch', 'pandas', 'numpy', 'scipy', 'pydantic'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)
    assert min(times) < 0.5


def test_names_of_published_weights_are_offered_without_torch():
    code = (
        "import sys\nfrom bench.cli import main\n"
        "try: main(['weights', 'get', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (*published.GENERATORS, *published.REWARDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    assert f"Example: stitchbench {name}" in call(name, "--help")


def test_lists():
    assert "gaussian" in call("ls", "worlds")
    assert re.search(
        r"tweedie +Tweedie: the reward of the posterior mean", call("ls", "estimators")
    )
    for kind in ("worlds", "estimators"):
        abouts = [line.split(maxsplit=1)[1] for line in call("ls", kind).strip().splitlines()]
        assert len(set(abouts)) == len(abouts) > 4, kind
    assert re.search(r"stitched +Stitched: a trained StitchVM", call("ls", "estimators"))
    listed = dict(line.split(maxsplit=1) for line in call("ls", "rewards").strip().splitlines())
    assert listed.keys() == WORLDS.keys()
    for name in ("gaussian", "sd35-medium"):
        assert listed[name] == ", ".join(WORLDS[name]().rewards)
    assert listed["shapes"] == "clip, aesthetic, hps"
    assert re.search(r"quickstart +Which value estimator to trust", call("ls", "suites"))
    assert re.search(r"bias +estimate minus true value \[reward\]", call("ls", "metrics"))


def test_plan_shows_cells_and_what_is_left(suite, tmp_path):
    store = tmp_path / "store"
    assert "3 cells, 3 to run" in call("plan", suite, "--store", store)
    call("run", suite, "--store", store, "--only", "estimator=truth")
    said = call("plan", suite, "--store", store)
    assert "3 cells, 2 to run" in said
    assert re.search(r"done +estimator=truth", said)


def test_plan_says_how_cells_ended_in_the_words_of_tables(suite, tmp_path):
    store, cell = Store(tmp_path), plan(suites.load(str(suite)))[0]
    rest = {"reason": "it ended so", "rows": [], "phases": {}, "wall_seconds": 0.0}
    for status in set(STATUSES) - {"ok"}:
        store.write(store.begin(cell.id), head(Job(cell=cell)) | rest | {"status": status}, {})
        [line] = [x for x in call("plan", suite, "--store", tmp_path).splitlines() if cell.id in x]
        assert line.split("  ", 1)[1].startswith(f"{SHOWN[status]:11}  estimator=")


def test_run_table_plot_report(suite, tmp_path):
    store = tmp_path / "store"
    out = call("run", suite, "--store", store)
    assert "3 cells measured, 0 were there, 0 failed" in out
    assert "tweedie" in out
    assert "0 cells measured, 3 were there" in call("run", suite, "--store", store)
    assert "tweedie" in call("table", store, "--out", tmp_path / "tables")
    assert {p.suffix for p in (tmp_path / "tables").rglob("*.*")} >= {".md", ".csv", ".tex"}
    call("plot", store, "--x", "seconds", "--y", "rmse", "--out", tmp_path / "plots")
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {
        "rmse-by-seconds.png",
        "rmse-by-seconds.pdf",
    }
    out = call("plot", store, "--only", "estimator=tweedie")
    kinds = [store / "plots" / f"rmse-by-sigma.{kind}" for kind in ("png", "pdf")]
    assert out.split() == [str(path) for path in kinds]
    assert all(path.is_file() for path in kinds)
    unknown = "expected --only to select some cells"
    assert unknown in said("plot", str(store), "--only", "estimator=none")
    assert "open " in call("report", store)
    page = (store / "report" / "index.html").read_text()
    assert "tweedie" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page)


def test_records_are_read_once_and_tidied_once(suite, tmp_path, monkeypatch):
    store, read, tidied, latest = tmp_path / "store", [], [], Store.latest
    call("run", suite, "--store", store)
    view = VIEWS["value"]
    monkeypatch.setattr(Store, "latest", lambda *args: read.append(1) or latest(*args))
    counted = view._replace(tidy=lambda records: tidied.append(1) or view.tidy(records))
    monkeypatch.setitem(VIEWS, "value", counted)
    call("run", suite, "--store", store)
    assert (len(read), len(tidied)) == (1, 1)
    call("table", store, "--out", tmp_path / "tables")
    assert (len(read), len(tidied)) == (2, 2)


def test_a_strangers_estimator_appears_everywhere_and_keeps_the_contract(tmp_path):
    file = tmp_path / "half.py"
    file.write_text(STRANGER)
    assert len(STRANGER.strip().splitlines()) <= 30
    tested = call("test", file)
    assert "FAILED" not in tested
    assert tested.count("ok ") == 8
    suite, store = tmp_path / "mine.yaml", tmp_path / "store"
    mine = {"name": "a quarter", "build": f"{file}:build", "factor": 0.25}
    suite.write_text(
        yaml.safe_dump(SUITE | {"axes": {"estimator": ["truth", "constant", str(file), mine]}})
    )
    out = call("run", suite, "--store", store)
    assert "half" in out
    assert "a quarter" in out
    call("report", store)
    for path in (store / "report").rglob("*.md"):
        assert "half" in path.read_text()
    assert "a quarter" in (store / "report" / "index.html").read_text()
    csv = pd.concat(pd.read_csv(p) for p in (store / "report").rglob("*.csv"))
    assert {"half", "a quarter"} <= set(csv["estimator"])


def test_a_broken_estimator_fails_its_contract(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(STRANGER.replace("return self.factor", "z_t += 1\n        return self.factor"))
    out = call("test", file, code=1)
    assert re.search(r"FAILED +The latents are not changed in place", out)


def test_refusals(suite, tmp_path):
    assert "unknown command 'runn'" in said("runn", "quickstart")
    assert "did you mean 'run'?" in said("runn", "quickstart")
    unknown = "unknown suite 'quikstart': expected one of cost-all, cost-dps, cost-estimators, "
    assert unknown in said("run", "quikstart")
    assert "unknown world 'gausian'" in said("run", suite, "--world", "gausian")
    assert "unknown field 'sigma'" in said("run", suite, "--set", "sigma=0.5")
    assert "expected --set AXIS=V1,V2, got 'sigmas'" in said("run", suite, "--set", "sigmas")
    assert "strictly between 0 and 1" in said("run", suite, "--set", "sigmas=0,0.5")
    assert "expected --only to select some cells" in said("run", suite, "--only", "estimator=none")
    assert "unknown estimator 'nope.pyx'" in said("test", "nope.pyx")
    file = tmp_path / "file"
    file.write_text("")
    assert "expected a folder for the store, got the file" in said("run", suite, "--store", file)
    assert "expected a store with records at nowhere" in said("table", "nowhere")
    (tmp_path / "plain").mkdir()
    for name in ("nowhere", tmp_path / "plain"):
        assert "makes one" not in said("table", name)
    store = tmp_path / "store"
    call("run", suite, "--store", store, "--only", "estimator=truth")
    assert "rmsee" in said("plot", store, "--y", "rmsee")
    assert "did you mean" in said("plot", store, "--y", "rmsee")


def test_folders_that_cannot_be_written_to_are_refused(suite, tmp_path):
    store, file = tmp_path / "store", tmp_path / "file"
    call("run", suite, "--store", store, "--only", "estimator=truth")
    file.write_text("")
    for command in ("table", "plot", "report"):
        told = said(command, store, "--out", file / "below")
        assert f"expected to read or write {file / 'below'}" in told
        assert "got Not a directory" in told


def test_measurements_of_other_code_are_named(suite, tmp_path, monkeypatch):
    store = tmp_path / "store"
    assert "other code" not in call("run", suite, "--store", store)
    monkeypatch.setattr("bench.stale._digest", lambda _: "f" * 16)
    assert "warning: 3 of these cells are stale, measured with other code" in call(
        "run", suite, "--store", store
    )


def test_a_device_that_is_not_there(suite, tmp_path):
    assert "expected a device of this machine, cpu" in said(
        "run", suite, "--store", tmp_path / "s", "--device", "cuda:99"
    )


def test_a_suite_without_a_shortened_form_says_that_it_runs_whole(suite, tmp_path):
    line = "mine has no shortened form: it runs whole"
    out = call("run", suite, "--store", tmp_path / "s", "--quick")
    assert out.startswith(line)
    suite.write_text(yaml.safe_dump(SUITE | {"quick": {"replicates": 3}}))
    assert line not in call("run", suite, "--store", tmp_path / "s", "--quick")
    suite.write_text(yaml.safe_dump(SUITE | {"where": "one GPU"}))
    refusal = said("run", suite, "--quick")
    assert "expected --device cuda for 'mine'" in refusal
    assert "--quick` rehearses" not in refusal


def test_a_failure_is_shown_and_sets_the_exit_code(tmp_path):
    store, path = tmp_path / "store", tmp_path / "bad.yaml"
    bad = {"name": "bad", "build": "monte_carlo", "particles": 0}
    path.write_text(yaml.safe_dump(SUITE | {"axes": {"estimator": ["tweedie", bad]}}))
    out = call("run", path, "--store", store, code=1)
    assert f"the page: stitchbench report {store}" in out
    assert "failed: bad (quadratic): ValueError: expected particles >= 1, got 0" in out
    call("report", store)
    assert "expected particles &gt;= 1, got 0" in (store / "report" / "index.html").read_text()
    only = tmp_path / "only.yaml"
    only.write_text(yaml.safe_dump(SUITE | {"axes": {"estimator": [bad]}}))
    assert "the page:" not in call("run", only, "--store", tmp_path / "empty", code=3)
    assert "expected at least one measured cell" in said("report", tmp_path / "empty")


def test_the_readme_is_true(tmp_path, monkeypatch):
    """Its Python runs, its training as well, and its estimator keeps the contract."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    use, own, diffusers, train = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for example in (use, diffusers, train):
        exec(compile(example, "README", "exec"), {})
    assert list((tmp_path / "results" / "runs" / "lora").glob("*.safetensors"))
    file = tmp_path / "my_estimator.py"
    file.write_text(own)
    assert len(own.strip().splitlines()) <= 30
    assert load_file(file, "estimator").build
    assert "FAILED" not in call("test", file)
    shell = re.search(r"stitchbench run (quickstart --set .*?) --store", text)[1].split()
    assert len(re.findall(r"estimator=my_estimator ", call("plan", *shell))) == 3
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (Path(__file__).parents[1] / link).exists(), link
