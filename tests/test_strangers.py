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
from bench.plan import plan

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
