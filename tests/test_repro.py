"""`stitchbench repro`: the paper's claims beside what is found, from stores, files and runs."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from test_robustness_report import records as judged
from test_robustness_report import stored

from bench import repro_commands as command
from bench.cli import cli
from bench.report import repro
from bench.report.align import claims as align
from bench.report.facets import Facet
from bench.report.paper import printed
from bench.report.robustness import claims as robust
from bench.report.scores import Score
from bench.report.views import VIEWS


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def numbers_of(data):
    """Every number of nested data as text."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        return {text for part in data for text in numbers_of(part)}
    return {f"{data:g}", f"{data:.2f}"} if isinstance(data, int | float) else set()


@pytest.mark.parametrize("name", repro.TABLES)
def test_every_table_has_claims_whose_numbers_the_paper_prints(name):
    about = repro.TABLES[name]
    found = VIEWS[about.task].judge(pd.DataFrame())
    mine = [one.claim for one in found if one.claim.table == name]
    assert mine
    section = {} if about.task == "value" else printed(about.task)
    known = numbers_of(section) | {"22", "26", "33", "91", "99", "2.3"}  # as its text says
    for claim in mine:
        used = re.findall(r"\d+\.\d+|\d+(?= %)", re.sub(r"SD 3\.5|at 0\.\d+", "", claim.paper))
        assert {f"{float(x):g}" for x in used} <= {f"{float(x):g}" for x in known}, claim.paper


def test_no_claim_of_a_table_is_left_out():
    tagged = {one.claim.table for view in VIEWS.values() for one in view.judge(pd.DataFrame())}
    assert tagged - {""} == set(repro.TABLES)


def test_a_store_says_what_held(tmp_path):
    store = stored(tmp_path / "store", judged())
    said = call("repro", "table5", "--store", store.path, "--out", tmp_path / "out")
    assert re.search(r"did not hold  StitchVM keeps 91 to 99 %", said)
    assert "91 % (CLIP at 0.5: 52.50 of 57.90)" in said
    assert re.search(r"here  .* % of the clean figure at sigma 0\.5 \(needs 91\)", said)
    claims = pd.read_csv(tmp_path / "out" / "claims.csv")
    held = {v.claim.statement: v for v in robust.judge(VIEWS["robustness"].tidy(judged()))}
    assert claims["claim"].tolist() == [c for c in held if held[c].claim.table == "table5"]
    assert "| table5 |" in (tmp_path / "out" / "claims.md").read_text()
    assert r"\toprule" in (tmp_path / "out" / "claims.tex").read_text()


def test_a_store_of_other_things_cannot_test_a_table(tmp_path):
    store = stored(tmp_path / "store", judged())
    assert "not testable here  A step of DPS" in call("repro", "table1", "--store", store.path)


def test_what_a_report_wrote_is_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = stored(tmp_path / "store", judged(rewards=["hps"], grids=["plain"]))
    call("report", store.path, "--out", tmp_path / "report")
    folder = tmp_path / "results" / "table5"
    folder.mkdir(parents=True)
    (tmp_path / "report" / "tables" / "claims.csv").rename(folder / "claims.csv")
    alone = call("repro", "table5", "--every")
    assert "was not kept with these claims" in alone
    (tmp_path / "report" / "tables" / "evidence.csv").rename(folder / "evidence.csv")
    every = call("repro", "table5", "--every", "--out", tmp_path / "out").splitlines()
    whole = call("repro", "table5", "--every", "--store", store.path).splitlines()
    assert every[1:-4] == whole[1:]
    assert not any("more)" in line for line in every)
    known = pd.read_csv(tmp_path / "out" / "evidence.csv")
    shown = [line for line in every if re.match(r" +(held|undecided|did not hold)  - ", line)]
    assert len(known) == len(shown) > len(known["claim"].unique())
    first = call("repro", "table5", "--store", store.path).splitlines()
    again = call("repro", "table5").splitlines()
    assert again[0].endswith("from results/table5/claims.csv")
    assert again[1:] == first[1:]
    (folder / "claims.csv").write_text("a,b\n1,2\n")
    assert "with columns table, claim, paper" in " ".join(call("repro", "table5", code=2).split())


def test_further_reference_runs_are_shown_beside_the_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, verdict in (("table1", "did not hold"), ("h200/cost-dps", "held")):
        (tmp_path / "results" / folder).mkdir(parents=True)
        lines = [Score("table1", "leaner", "1", "2", verdict),
                 Score("table1", f"of {folder} alone", "1", "2", "not testable here")]  # fmt: skip
        repro.listed(lines).to_csv(tmp_path / "results" / folder / "claims.csv", index=False)
    said = call("repro", "table1")
    assert re.search("did not hold  leaner.*results/h200/cost-dps.* held  leaner", said, re.S)
    assert "of table1 alone" in said
    assert "of h200/cost-dps alone" not in said  # what it cannot test the first one says
    assert "h200" not in call("repro", "table1", "--store", tmp_path / "results" / "table1")


def test_own_runs_come_before_reference_runs(tmp_path):
    for name in ("mine", "reference"):
        (tmp_path / name).mkdir()
        line = Score("table5", name, "1", "2", "held")
        repro.listed([line]).to_csv(tmp_path / name / "claims.csv", index=False)
    found = repro.read("table5", [tmp_path / "none", tmp_path / "mine", tmp_path / "reference"])
    assert [one.claim for one in found.lines] == ["mine"]
    assert repro.read("table5", [tmp_path / "none"]) is None


def test_a_table_of_which_there_is_nothing_is_run(tmp_path, monkeypatch):
    """Here by a small suite, whose cell fails: that is no reason to say nothing."""
    world = {"build": "gaussian", "latent": [2, 2, 1], "components": 3, "rank": 2, "prompts": 4}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({
        "name": "mine", "about": "-", "minutes": 0.1, "isolation": "inline",
        "defaults": {"world": world, "reward": "linear", "prompts": 3, "calls": 1,
                     "sigmas": [0.25], "replicates": 2, "gradient": False},
        "axes": {"estimator": ["constant", {"name": "bad", "build": "monte_carlo",
                                            "particles": 0}]},
    }))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(repro.TABLES, "fig2", repro.Printed("-", "mine.yaml", "value"))
    assert "fig2: nothing is measured yet" in call("repro", "all")
    assert not (tmp_path / command.RUNS).exists()
    said = call("repro", "fig2")
    assert "not testable here  At high noise" in said
    assert (tmp_path / command.RUNS / "mine" / "cells").is_dir()
    assert "cells measured" not in call("repro", "fig2")  # read, not run


def test_refusals(tmp_path):
    said = " ".join(call("repro", "tabel1", code=2).split())
    assert "unknown table 'tabel1'" in said
    assert "did you mean 'table1'?" in said
    assert "expected a store with records" in call("repro", "table1", "--store", tmp_path, code=2)


def steered(shift, noise):
    """Both value models of a comparison, and unsteered samples below them."""
    rng = np.random.default_rng(0)
    own = 1 + rng.normal(size=24)
    other = own + shift + noise * rng.normal(size=24)
    rows = [
        {"cell": cell, "phase": phase, "method": cell, "estimator_build": "stitched",
         "algorithm_build": "steer", "estimator.generator": generator, "target_by_prompt": x}
        for cell, generator, steering in (("own", None, own), ("small", "small", other))
        for phase, x in (("unsteered", own - 1), ("eval", steering))
    ]  # fmt: skip
    return Facet("shapes", "-", "-", "-", "-", pd.DataFrame(rows), [])


@pytest.mark.parametrize(
    ("shift", "noise", "held"), [(0.0, 0.05, True), (-0.5, 0.1, False), (-0.1, 0.2, None)]
)
def test_a_smaller_generators_value_model_may_lose_a_tenth_of_the_gain(shift, noise, held):
    (evidence,) = align.smaller(steered(shift, noise))
    assert evidence.held is held
    assert "small minus own" in evidence.figures
    assert "may lose 0.10" in evidence.figures
