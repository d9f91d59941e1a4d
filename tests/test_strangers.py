"""A stranger's files: each keeps its contract, and appears in tables and pages."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from bench import suite as suites
from bench.cli import cli
from bench.part import Part
from bench.plan import plan
from bench.prompts import checked
from bench.tasks.train import School
from bench.worlds import make, rewards_of

EXAMPLES = Path(__file__).parent / "examples"
KINDS = {
    "estimator.py": "estimator",
    "reward.py": "reward",
    "backbone.py": "backbone",
    "judge.py": "judge",
    "metric.py": "metric",
    "algorithm.py": "algorithm",
    "prompts.py": "prompts",
    "scenes.txt": "prompts",
}
WORLD = {"build": "gaussian", "latent": [2, 2, 1], "components": 3, "rank": 2, "prompts": 6}
MINE = {
    "name": "my flow",
    "build": "gaussian",
    "latent": [2, 2, 1],
    "components": 3,
    "rank": 2,
    "prompts": str(EXAMPLES / "scenes.txt"),
    "backbone": str(EXAMPLES / "backbone.py"),
}
VALUE = {
    "name": "mine",
    "about": "everything of a stranger's at once",
    "minutes": 0.1,
    "isolation": "inline",
    "defaults": {"world": WORLD, "prompts": 3, "calls": 1, "sigmas": [0.5]}
    | {"replicates": 2, "metrics": [str(EXAMPLES / "metric.py")]},
    "axes": {
        "where": [
            {"world": MINE, "reward": "quadratic"},
            {"world": {"name": "small", **WORLD}, "reward": str(EXAMPLES / "reward.py")},
        ],
        "estimator": ["constant", str(EXAMPLES / "estimator.py")],
    },
}
ALIGN = {
    "name": "mine",
    "about": "everything of a stranger's at once",
    "minutes": 0.1,
    "isolation": "inline",
    "task": "align",
    "defaults": {"world": MINE, "kernel": "square", "steps": 4, "samples": 3, "rounds": 0}
    | {"drawn": 8, "judges": [{"name": "redness", "build": f"{EXAMPLES / 'judge.py'}:build"}]},
    "axes": {
        "reward": [str(EXAMPLES / "reward.py")],
        "method": [
            {"algorithm": {"build": "guide", "first": 0.9},
             "estimator": {"name": "DPS, mine", "build": str(EXAMPLES / "estimator.py")}},
            {"algorithm": str(EXAMPLES / "algorithm.py"),
             "estimator": {"name": "screened", "build": "tweedie"}},
        ],
    },
}  # fmt: skip


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def written(folder, suite):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


def planned(folder, suite, **changes):
    return plan(suites.load(str(written(folder, suite | changes))))


@pytest.mark.parametrize(("file", "kind"), KINDS.items())
def test_an_example_is_short_and_keeps_the_contract_of_its_kind(file, kind):
    assert len((EXAMPLES / file).read_text().strip().splitlines()) <= 30
    out = call("test", EXAMPLES / file)
    assert f"{file} as {kind} in gaussian" in out
    assert "FAILED" not in out
    assert out.count("\nok ") >= 4


def test_every_example_is_tested():
    others = {"captions.jsonl"}  # of the shapes world: `test_captions_...`
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {*KINDS, *others}


def test_a_strangers_files_appear_in_value(tmp_path):
    store = tmp_path / "store"
    out = call("run", written(tmp_path, VALUE), "--store", store)
    assert "4 cells measured, 0 were there, 0 failed" in out
    call("report", store)
    csv = pd.concat(pd.read_csv(p) for p in (store / "report").rglob("values.csv"))
    assert set(csv["estimator"]) == {"constant", "estimator"}
    by_world = csv.set_index("world").sort_index()
    assert by_world.loc["my flow", "metric metric"].between(0, 1).all()
    assert by_world.loc["my flow", "rmse"].notna().all()
    assert set(by_world.loc["small", "reward"]) == {"reward"}
    assert by_world.loc["small", "metric metric"].isna().all()  # of unknown truth
    assert by_world.loc["small", "bias_realised"].notna().all()
    page = (store / "report" / "index.html").read_text()
    table = (store / "report" / "tables" / "values.md").read_text()
    for text in (page, table, (store / "report" / "tables" / "values.tex").read_text()):
        for name in ("my flow", "metric", "estimator", "reward"):
            assert name in text.lower()


def test_a_strangers_files_appear_in_align(tmp_path):
    store = tmp_path / "store"
    out = call("run", written(tmp_path, ALIGN), "--store", store)
    assert "2 cells measured, 0 were there, 0 failed" in out
    call("report", store)
    text = "".join(path.read_text() for path in store.rglob("*methods.md"))
    for name in ("redness", "DPS, mine", "screened"):
        assert name in text
        assert name in (store / "report" / "index.html").read_text()
    for path in store.rglob("result.json"):
        rows = json.loads(path.read_bytes())["rows"]
        assert {tuple(row["prompts"]) for row in rows} == {("scene 3", "scene 1", "scene 4")}
        assert all(0 <= x <= 1 for row in rows for x in row["metrics"]["judge redness"])


def test_content_is_identity_and_folders_are_not(tmp_path):
    """Of every file that a suite can name; a changed one is another cell."""
    shutil.copytree(EXAMPLES, tmp_path / "a")
    shutil.copytree(EXAMPLES, tmp_path / "b")

    def ids(folder):
        texts = [yaml.safe_dump(suite).replace(str(EXAMPLES), str(tmp_path / folder))
                 for suite in (VALUE, ALIGN)]  # fmt: skip
        return [[cell.id for cell in planned(tmp_path, yaml.safe_load(text))] for text in texts]

    first = ids("a")
    assert ids("b") == first
    uses = {"estimator.py": 1, "reward.py": 1, "backbone.py": 1, "scenes.txt": 1, "metric.py": 1,
            "judge.py": 1, "algorithm.py": 1}  # fmt: skip
    for name in uses:
        path = tmp_path / "b" / name
        before = path.read_text()
        path.write_text(f"{before}\n# changed\n")
        changed = [one != other for mine, theirs in zip(first, ids("b"), strict=True)
                   for one, other in zip(mine, theirs, strict=True)]  # fmt: skip
        assert any(changed), name
        path.write_text(before)


def test_captions_replace_the_prompts_of_shapes_and_are_not_tuned_on(tmp_path):
    out = call("test", EXAMPLES / "captions.jsonl", "--world", "shapes,per_kind=1")
    assert "captions.jsonl as prompts in shapes" in out
    assert "FAILED" not in out
    known = make(Part(build="shapes", settings={"per_kind": 1}))
    file = tmp_path / "mine.txt"
    file.write_text(f"# mine\n\n{known.tuning[1]}\n a red circle \n{known.training(3)[2]}\n")
    parts = {"prompts": Part(build=str(file))}
    world = make(Part(build="shapes", settings={"per_kind": 1}, parts=parts))
    assert world.prompts == (known.tuning[1], "a red circle", known.training(3)[2])
    assert world.tuning == tuple(text for text in known.tuning if text not in world.prompts)
    assert len(world.tuning) == len(known.tuning) - 1
    assert len(world.training(50)) == 50
    assert not set(world.training(50)) & set(world.prompts)
    assert known.training(50)[3:] == world.training(49)[2:]  # the others stay as they were
    with pytest.raises(ValueError, match=r"got \['cat'\] in 'a purple cat'"):
        checked(["a purple cat"], known)


BAD = {
    "wide.py": "from bench.resolve import load_file\nfrom pathlib import Path\n"
    "Plain = load_file(Path('{examples}/backbone.py'), 'x').Plain\n"
    "def build(world):\n    made = Plain(world.backbone, 1.0)\n    made.latent = (3, 8, 8)\n"
    "    return made\n",
    "raises.py": "def build(world):\n    return {}['x']\n",
    "twice.txt": "scene 1\nscene 1\n",
    "empty.txt": "# nothing\n",
    "torn.jsonl": '{"prompt": "scene 1"}\n{"prompt":\n',
    "number.jsonl": '{"prompt": 3}\n',
    "other.txt": "a red circle\n",
}


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ({"backbone": "wide.py"}, r"expected a generator of latents \(2, 2, 1\).*got \(3, 8, 8\)"),
        (
            {"backbone": "raises.py"},
            "expected backbone 'raises' to build, got KeyError: 'x' .raises.py:2",
        ),
        ({"backbone": "tweedie"}, "unknown backbone 'tweedie': expected `file.py:build`"),
        ({"backbone": {"build": "wide.py", "size": 3}}, "unknown setting of backbone 'wide"),
        ({"prompts": "twice.txt"}, "expected every prompt once, got 'scene 1' again"),
        ({"prompts": "empty.txt"}, "expected a list of prompts, at least one, got 0"),
        ({"prompts": "torn.jsonl"}, r"torn.jsonl:2: expected JSON"),
        ({"prompts": "number.jsonl"}, r"number.jsonl:1: expected a string or"),
        ({"prompts": "other.txt"}, "expected prompts 'scene 0'"),
        ({"prompts": "missing.txt"}, "expected a list of prompts at .*missing.txt, found no file"),
        ({"prompts": "raises.py:build"}, "expected prompts 'raises' to build, got KeyError"),
    ],
)
def test_files_that_do_not_fit_a_world_are_refused(tmp_path, world, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in BAD.items():
        Path(name).write_text(text.replace("{examples}", str(EXAMPLES)))
    plain = {k: v for k, v in WORLD.items() if k not in world}
    axes = {"estimator": ["tweedie"]}
    defaults = VALUE["defaults"] | {"world": plain | world, "reward": "linear", "metrics": []}
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, VALUE, defaults=defaults, axes=axes)


@pytest.mark.parametrize(
    ("suite", "changes", "message"),
    [
        (VALUE, {"metrics": ["bias"]}, "unknown metric 'bias': expected `file.py:build`"),
        (VALUE, {"metrics": "metric.py"}, "expected a list of metrics, got 'metric.py'"),
        (VALUE, {"metrics": ["metric.py", "metric.py"]}, "metrics of different names"),
        (ALIGN, {"judges": ["redness"]}, "unknown judge 'redness'"),
        (ALIGN, {"judges": [{"build": "judge.py", "gain": "x"}]}, "gain: .*number.*got 'x'"),
    ],
)
def test_judges_and_metrics_that_are_none_are_refused(
    tmp_path, suite, changes, message, monkeypatch
):
    monkeypatch.chdir(EXAMPLES)
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, suite, defaults=suite["defaults"] | changes)


PLAIN = "def reward(x, c):\n    return x.mean((1, 2, 3))\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain.py", "expected a function 'build' in plain.py, found none to build the reward"),
        (
            "plain.py:reward",
            r"expected 'plain' to build a Reward, as build\(world\) does, got rew",
        ),
    ],
)
def test_a_plain_function_as_a_reward_is_refused_before_it_runs(
    tmp_path, name, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("plain.py").write_text(PLAIN)
    axes = {"estimator": ["tweedie"]}
    defaults = VALUE["defaults"] | {"reward": name, "metrics": []}
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, VALUE, defaults=defaults, axes=axes)


def test_a_judge_is_told_that_it_is_no_reward():
    out = call("test", EXAMPLES / "judge.py")
    assert "a reward must be a Reward, such as stitchvm.whole.WholeReward" in out
    assert "no reward" not in call("test", EXAMPLES / "judge.py", "--kind", "judge")


def test_a_sum_of_rewards_keeps_the_digest_of_a_file(tmp_path):
    suite = {"name": "mine", "about": "a sum", "minutes": 0.1, "task": "train"} | {
        "defaults": {"world": WORLD, "algorithm": "nft", "estimator": "terminal", "steps": 4},
        "axes": {"reward": [f"linear+{tmp_path / 'reward.py'}:build", "linear+sigmoid"]},
    }
    text = (EXAMPLES / "reward.py").read_text()
    (tmp_path / "reward.py").write_text(text)
    first = planned(tmp_path, suite)
    assert [cell.coordinates["reward"] for cell in first] == ["linear+reward", "linear+sigmoid"]
    assert len(rewards_of(first[0].spec.reward, make(first[0].spec.world))) == 2
    (tmp_path / "reward.py").write_text(f"{text}\n")
    second = planned(tmp_path, suite)
    assert first[0].id != second[0].id
    assert first[1].id == second[1].id


def test_only_the_worlds_own_generator_is_trained(tmp_path):
    suite = {"name": "mine", "about": "no", "minutes": 0.1, "task": "train"} | {
        "defaults": {"world": MINE, "algorithm": "nft", "estimator": "terminal", "steps": 4},
        "axes": {"reward": ["linear"]},
    }
    (cell,) = planned(tmp_path, suite)
    with pytest.raises(
        ValueError, match="expected the world's own generator to train, got .*back"
    ):
        School.of(cell.spec, "cpu", tmp_path)


def test_tasks_that_know_rewards_by_name_say_so(tmp_path):
    suite = {"name": "mine", "about": "no", "minutes": 0.1, "task": "cost"} | {
        "defaults": {"world": WORLD, "reward": str(EXAMPLES / "reward.py")},
        "axes": {"estimator": ["search"]},
    }
    with pytest.raises(ValueError, match="unknown reward of the cost task.*linear, quadratic"):
        planned(tmp_path, suite)
