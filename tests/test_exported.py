"""Kept samples as pictures, and what other programs say of them as a further judge."""

import csv
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bench import suite as suites
from bench.cli import cli
from bench.how import INLINE
from bench.plan import plan
from bench.report.align import tables
from bench.report.align.frame import tidy
from bench.run import run
from bench.store import Store

WORLD = '''"""A Gaussian world whose latents are pictures."""
from bench.worlds.gaussian import GaussianWorld


class Pictured(GaussianWorld):
    def pictures(self, z_0):
        return z_0.tanh()


def build(*, seen: bool = True, device: str = "cpu"):
    made = (Pictured if seen else GaussianWorld)(
        latent=(3, 4, 4), components=2, rank=2, prompts=3, device=device
    )
    return made
'''
SUITE = """
name: mine
about: A small one.
minutes: 1
task: align
isolation: inline
defaults:
  world: {{name: pictured, build: "{file}", seen: {seen}}}
  reward: linear
  kernel: sigma
  steps: 2
  samples: 2
  trials: 0
  strength: 2.0
  drawn: 4
  rounds: 0
  keep: {keep}
axes:
  method:
    - {{algorithm: sample, estimator: none}}
    - {{algorithm: {{build: best_of_n, particles: 2}}, estimator: {{name: BoN, build: none}}}}
"""


def ran(folder, *, keep=True, seen=True):
    (folder / "pictured.py").write_text(WORLD)
    (folder / "mine.yaml").write_text(
        SUITE.format(file=folder / "pictured.py", keep=str(keep).lower(), seen=str(seen).lower())
    )
    found = Store(folder / "store")
    cells = plan(suites.load(str(folder / "mine.yaml")))
    assert run(cells, found, INLINE)["ok"] == 2
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    result = call("export", store.path, "--to", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(autouse=True)
def _no_judges(store):
    yield
    for path in store.path.rglob("judge-*.json"):
        path.unlink()


def call(*arguments):
    return CliRunner().invoke(cli, ["images", *map(str, arguments)])


def listed(folder):
    """Every picture and its prompt, as another program is told."""
    found = []
    for path in sorted(folder.rglob("files.csv")):
        with path.open(newline="") as file:
            found += [(row["file"], row["prompt"]) for row in csv.DictReader(file)]
    return found


def test_pictures_lie_as_geneval_wants_them(store, exported):
    known = 0
    for record in store.latest().values():
        arrays = store.samples(record["id"], record["attempt"])
        for row in record["rows"]:
            name = {"eval": "z_0", "unsteered": "unsteered_z_0"}[row["phase"]]
            place = exported / record["id"] / record["attempt"] / row["phase"]
            for k, prompt in enumerate(row["prompts"]):
                said = json.loads((place / f"{k:05}" / "metadata.jsonl").read_text())
                assert said == {"prompt": prompt}
                for n in range(2):
                    pixels = np.array(Image.open(place / f"{k:05}" / "samples" / f"{n:05}.png"))
                    wanted = (np.tanh(arrays[name][2 * k + n]) + 1) * 127.5
                    assert np.abs(pixels - wanted.transpose(1, 2, 0)).max() < 0.51
                    known += 1
    assert len(listed(exported)) == known >= 12
    for file, _ in listed(exported):
        assert (exported / file).is_file()


def test_what_was_exported_stays_and_a_stopped_export_leaves_nothing(
    store, exported, tmp_path, monkeypatch
):
    again = call("export", store.path, "--to", exported)
    assert again.exit_code == 0
    assert all(line.endswith("was there") for line in again.output.splitlines())
    saved = Image.Image.save

    def stops(self, path, *rest):
        if str(path).endswith("00001/samples/00000.png"):
            raise KeyboardInterrupt
        saved(self, path, *rest)

    monkeypatch.setattr(Image.Image, "save", stops)
    call("export", store.path, "--to", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_metadata_of_geneval_stands_beside_its_prompts(store, exported, tmp_path):
    prompts = list(dict.fromkeys(prompt for _, prompt in listed(exported)))
    entries = [
        {"tag": "counting", "include": [{"class": "cow", "count": k}], "prompt": prompt}
        for k, prompt in enumerate(prompts)
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)))
    result = call("export", store.path, "--to", tmp_path / "to", "--geneval", path)
    assert result.exit_code == 0, result.output
    found = [json.loads(p.read_text()) for p in (tmp_path / "to").rglob("metadata.jsonl")]
    assert all(one in entries for one in found)
    path.write_text("\n".join(map(json.dumps, entries[1:])))
    result = call("export", store.path, "--to", tmp_path / "other", "--geneval", path)
    assert result.exit_code == 2
    assert f"got none of {prompts[0]!r}" in said(result)


def said(result):
    """A message without what a terminal puts round it."""
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", " ", result.output))


def test_pictures_need_a_folder(store, tmp_path):
    (tmp_path / "file").write_text("")
    result = call("export", store.path, "--to", tmp_path / "file")
    assert result.exit_code == 2
    assert "expected a folder for the pictures" in said(result)


def test_what_has_no_pictures_is_refused(tmp_path):
    for name, settings in {"bare": {"keep": False}, "blind": {"seen": False}}.items():
        (tmp_path / name).mkdir()
        found = ran(tmp_path / name, **settings)
        result = call("export", found.path, "--to", tmp_path / name / "to")
        assert result.exit_code == 2
        expected = {
            "bare": "`keep: true` in a suite keeps them",
            "blind": "whose samples are pictures",
        }
        assert expected[name] in said(result)
        assert not [p for p in (tmp_path / name / "to").rglob("*") if p.is_file()]


def geneval(exported, path, root="/elsewhere/out", **changes):
    """GenEval's own results: odd samples are correct, of two kinds of prompts."""
    rows = []
    for file, prompt in listed(exported):
        k, n = int(file.split("/")[3]), int(file[-9:-4])
        rows.append(
            {
                "filename": f"{root}/{file}",
                "tag": "counting" if k == 0 else "position",
                "prompt": prompt,
                "correct": bool(n % 2 or k == 0),
                "reason": "",
                "metadata": "{}",
                "details": "{}",
            }
        )
    rows[0] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_geneval_s_results_become_a_judge(store, exported, tmp_path):
    rows = geneval(exported, tmp_path / "results.jsonl")
    before = {p: p.read_bytes() for p in store.path.rglob("result.json")}
    result = call(
        "import", store.path, tmp_path / "results.jsonl", "--as", "geneval",
        "--out", tmp_path / "out" / "scores.csv",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    # As its summary: counting 1, position 1/2, and overall the mean of the two, not 2/3.
    assert "6 pictures overall 0.7500 counting 1.000 position 0.500" in said(result)
    assert {p: p.read_bytes() for p in store.path.rglob("result.json")} == before
    for record in store.records():
        for scores in record["judges"]["geneval"]["scores"].values():
            assert scores == [[1, 1], [0, 1], [0, 1]]
    shown = tables.methods(tidy(store.records()))
    assert "geneval" in shown.columns
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    assert {(w["file"], float(w["score"]), w["prompt"], w["kind"]) for w in written} == {
        (r["filename"].removeprefix("/elsewhere/out/"), float(r["correct"]), r["prompt"], r["tag"])
        for r in rows
    }


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_any_scores_become_a_judge_whatever_their_order(store, exported, tmp_path, suffix):
    rows = [{"file": file, "score": 0.1 * k - 1} for k, (file, _) in enumerate(listed(exported))]
    path, wanted = tmp_path / f"imagereward{suffix}", {r["file"]: r["score"] for r in rows}
    rows.reverse()
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["score", "file"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    result = call("import", store.path, path, "--as", "imagereward")
    assert result.exit_code == 0, result.output
    for record in store.records():
        for phase, scores in record["judges"]["imagereward"]["scores"].items():
            place = f"{record['id']}/{record['attempt']}/{phase}"
            for k, of_prompt in enumerate(scores):
                for n, score in enumerate(of_prompt):
                    assert score == pytest.approx(wanted[f"{place}/{k:05}/samples/{n:05}.png"])


def test_phases_may_be_scored_one_after_the_other(store, exported, tmp_path):
    every = listed(exported)
    for phase in ("eval", "unsteered"):
        path = tmp_path / f"{phase}.csv"
        rows = [f"{file},{len(phase)}" for file, _ in every if f"/{phase}/" in file]
        path.write_text("\n".join(["file,score", *rows]))
        assert call("import", store.path, path, "--as", "mine").exit_code == 0
    found = [record["judges"]["mine"]["scores"] for record in store.records()]
    both = {"eval": [[4, 4]] * 3, "unsteered": [[9, 9]] * 3}
    assert both in found  # of best-of-N, beside its own sampler's


BAD = {
    "a picture of no store": ({"filename": "x/0001/eval/00000/samples/00000.png"}, "got x/0001"),
    "a path without its cell": ({"filename": "00000/samples/00000.png"}, "by paths that end in"),
    "a verdict that is none": ({"correct": "perhaps"}, "correct: Input should be a valid number"),
    "no verdict": ({"correct": None}, "results.jsonl:1: correct"),
    "another prompt": ({"prompt": "a photo of a cow"}, "got 'a photo of a cow'"),
}


@pytest.mark.parametrize("damage", BAD)
def test_results_that_do_not_fit_are_refused(store, exported, tmp_path, damage):
    changes, message = BAD[damage]
    geneval(exported, tmp_path / "results.jsonl", **changes)
    result = call("import", store.path, tmp_path / "results.jsonl", "--as", "geneval")
    assert result.exit_code == 2
    assert message in said(result)
    assert not list(store.path.rglob("judge-*"))


def test_scores_that_are_not_whole_are_refused(store, exported, tmp_path):
    path = tmp_path / "results.jsonl"
    rows = geneval(exported, path)
    whole = path.read_text()
    refused = {
        f"got none of {rows[0]['filename'].removeprefix('/elsewhere/out/')} (1 are missing)": (
            whole.partition("\n")[2]
        ),
        "expected every picture once": whole + whole,
        "is the file whole?": whole[:-40],
        "expected lines of JSON": "",
    }
    for message, text in refused.items():
        path.write_text(text)
        result = call("import", store.path, path, "--as", "geneval")
        assert result.exit_code == 2
        assert message in said(result)
    table = tmp_path / "scores.csv"
    for message, text in {
        "got no ['score']": "file,reward\na,1\n",
        "expected scores in": "file,score\n",
        "should be a valid number": f"file,score\n{listed(exported)[0][0]},high\n",
        "finite number": f"file,score\n{listed(exported)[0][0]},nan\n",
    }.items():
        table.write_text(text)
        result = call("import", store.path, table, "--as", "imagereward")
        assert result.exit_code == 2
        assert message in said(result)
    assert "expected --as a name" in said(call("import", store.path, path, "--as", "../up"))
    assert not list(store.path.rglob("judge-*"))
