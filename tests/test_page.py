"""What a report does with cells, failures, stale numbers and hostile text, in every format."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from records import HOSTILE, stored, value

from bench import frame as frames
from bench.report import (
    book,
    cells,
    estimators,
    facets,
    figures,
    marks,
    places,
    plots,
    scores,
    tables,
    typeset,
)
from bench.report.align.memory import memory
from bench.report.claims import Claim, Verdict
from bench.report.evidence import Evidence
from bench.report.figures import realised
from bench.report.grid import grid

WORDS = {
    "oom_gpu": "OOM", "oom_host": "OOM (host)", "timeout": "timeout", "diverged": "diverged",
    "error": "error", "skipped": "skipped", "interrupted": "interrupted", "invalid": "invalid",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """Drawing takes its time, and what is tested here is text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FIGURES", {})
        yield


class Seen(HTMLParser):
    """The text, ids, links and scripts of a page."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.tags, self.text = [], [], [], []
        self.handlers = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.handlers += [name for name in found if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    seen = Seen()
    seen.feed(path.read_text())
    return seen


@pytest.fixture(scope="module")
def made():
    """Records of value cells: three with numbers, one for each way to fail."""
    ok = [value(name, build=name) for name in ("truth", "constant", "tweedie")]
    return [*ok, *(value(f"my {status}", status=status) for status in WORDS)]


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    files, path = book.write(stored(folder / "store", made), folder / "out")
    return files, path


# cells


def test_every_link_to_a_cell_leads_to_its_panel(page, made):
    seen = read(page[1])
    leads = {link[1:] for link in seen.links if link.startswith("#cell-")}
    assert leads == {f"cell-{record['id']}" for record in made}
    assert leads <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))


def test_every_row_of_a_table_names_the_cell_of_its_numbers(made):
    frame = frames.tidy(made)
    (facet,) = tables.split(frame, frames.failures(made))
    table = tables.value_table(facet.frame, facet.failures)
    names = {r["id"]: r["coordinates"]["estimator"] for r in made}
    assert all(shown.startswith(names[cell])
               for cell, shown in zip(table.index, table["estimator"], strict=True))  # fmt: skip
    assert {line.cell for line in grid(table).lines} == set(names)
    trust = tables.trust_table(facet.frame)
    assert [names[cell] for cell in trust.index] == trust["trust"].tolist()


def test_a_panel_says_what_where_and_how_to_repeat_it(made, page):
    failed = next(r for r in made if r["status"] == "oom_host")
    (panel,) = cells.panels(None, [failed | {"command": "stitchbench run mine --rerun all"}])
    assert panel.status == "OOM (host)"
    assert panel.about["exit"] == "signal SIGKILL"
    assert panel.about["reason"] == "it ended so"
    assert panel.texts["End of its log"] == "one\ntwo"
    assert json.loads(panel.texts["Specification"]) == failed["spec"]
    assert panel.command == "stitchbench run mine --rerun all"
    text = page[1].read_text()
    assert f"stitchbench run mine --seed 0 --only id={failed['id']} --rerun all" in text


def test_the_log_of_an_old_failure_is_read_from_its_file(tmp_path):
    failed = value("old", status="error")
    del failed["log"]
    store = stored(tmp_path, [failed])
    (attempt,) = (tmp_path / "cells" / failed["id"]).iterdir()
    (attempt / "log.txt").write_text("".join(f"line {k}\n" for k in range(40)))
    (panel,) = cells.panels(store, store.latest().values())
    assert panel.texts["End of its log"].splitlines() == [f"line {k}" for k in range(10, 40)]


# failures in place


@pytest.mark.parametrize("status", WORDS)
def test_a_failure_stands_in_its_row_with_its_word(made, page, status):
    files, path = page
    name = f"my {status}"
    by_name = {file.name: file for file in files}
    row = f"{name} ({WORDS[status]})"
    assert f"| {row} | it ended so |" in by_name["values.md"].read_text()
    assert typeset.tex_safe(row) in by_name["values.tex"].read_text()
    csv = pd.read_csv(by_name["values.csv"]).set_index("estimator")
    assert csv.loc[name, ["status", "reason"]].tolist() == [status, "it ended so"]
    assert np.isnan(csv.loc[name, "rmse"])
    text = path.read_text()
    assert re.search(rf'<tr class="[^"]*failed" [^>]*>.*{re.escape(row)}', text)
    (chapter,) = book.chapters(made)
    said = book.said(chapter, 100)
    assert re.search(rf"{name} +{re.escape(WORDS[status])}: it ended so", said)


def test_failures_of_a_sheet_stand_where_they_were_started():
    lines = [("a", "1", "A", "N = 1"), ("a", "1", "A", "N = 1"), ("b", "3", "FKS", "N = 2")]
    frame = pd.DataFrame(lines, columns=["cell", "started", "estimator", "algorithm"])
    table = pd.DataFrame({"method": ["A", "A", "FKS"], "gain": ["1", "2", "3"]}, index=list("aab"))
    failed = [
        {"cell": "c", "status": "oom_gpu", "word": "OOM", "reason": "", "started": "2",
         "estimator": "FKS", "algorithm": "N = 4"},
        {"cell": "d", "status": "timeout", "word": "timeout", "reason": "", "started": "4",
         "estimator": "B", "algorithm": "N = 4"},
    ]  # fmt: skip
    found = places.placed(table, frame, failed)
    assert found["method"].tolist() == ["A", "A", "FKS, N = 4 (OOM)", "FKS", "B (timeout)"]
    assert found["gain"].tolist() == ["1", "2", "\u2013", "3", "\u2013"]
    assert found.index.tolist() == ["a", "a", "c", "b", "d"]
    other = pd.DataFrame({"model": ["x"]})
    assert places.placed(other, frame, failed) is other


def test_a_failure_says_its_coordinates_and_no_figure_of_the_same_name():
    frame = pd.DataFrame({"cell": ["a"], "started": ["1"], "estimator": ["A"], "reward": ["clip"]})
    failed = [{"cell": "b", "status": "timeout", "reason": "", "started": "2", "estimator": "B",
               "reward": "clip"}]  # fmt: skip
    for shown, expected in (("clip", "clip"), ("0.25", "\u2013")):  # a reward, its seconds
        table = pd.DataFrame({"method": ["A"], "reward": [shown]}, index=["a"])
        assert places.placed(table, frame, failed)["reward"].tolist() == [shown, expected]


def test_cells_of_tables_without_any_numbers_are_not_dropped(made, tmp_path):
    lost = value("lonely", status="timeout", reward="linear")
    files, _ = book.write(stored(tmp_path / "store", [*made[:3], lost]), tmp_path / "out")
    by_name = {file.name: file.read_text() for file in files}
    for name in ("values.md", "values.tex"):
        assert "Cells of tables without any numbers" in by_name[name]
        assert "lonely (timeout)" in by_name[name]
    assert "lonely" in by_name["values.csv"]
    (chapter,) = book.chapters([*made[:3], lost])
    assert "lonely (timeout)" in book.said(chapter, 100)


# stale


def test_numbers_of_other_code_are_marked(made, tmp_path, monkeypatch):
    monkeypatch.setattr(marks, "stale", lambda r: r["coordinates"]["estimator"] == "tweedie")
    files, path = book.write(stored(tmp_path / "store", made[:3]), tmp_path / "out")
    by_name = {file.name: file for file in files}
    assert "| tweedie \u2020 |" in by_name["values.md"].read_text()
    assert "\u2020 stale: measured before" in by_name["values.md"].read_text()
    assert r"tweedie \textdagger{}" in by_name["values.tex"].read_text()
    assert r"\textdagger{} stale: measured before" in by_name["values.tex"].read_text()
    assert "ok, stale" in path.read_text()
    assert "tweedie \u2020" in book.said(book.chapters(made[:3])[0], 100)
    assert "\u2020 stale" in book.said(book.chapters(made[:3])[0], 100)


def test_records_without_a_digest_of_code_are_not_called_stale(made):
    assert not marks.stale(made[0])


# hostile text


def test_names_are_of_one_line_and_never_meet():
    long, cut = "x" * 10_000, "x" * 9_999
    shown = [marks.marked(value(name))["coordinates"]["estimator"]
             for name in ("a b", "a\nb", "a\u202eb", long, cut)]  # fmt: skip
    assert shown[0] == "a b"
    assert len(set(shown)) == 5
    assert all(len(name) < 140 and name.isprintable() for name in shown)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report whose names and reasons are each other's worst."""
    folder = tmp_path_factory.mktemp("hostile")
    ok = [value(name, build=name) for name in ("truth", "constant")]
    others = [value(text, build="tweedie", shift=k) for k, text in enumerate(HOSTILE)]
    failed = [value(f"{text} too", status="error", reason=text) for text in HOSTILE]
    return book.write(stored(folder / "store", [*ok, *others, *failed]), folder / "out")


def test_hostile_text_is_only_text_on_the_page(hostile):
    seen = read(hostile[1])
    assert seen.tags.count("script") == 1
    assert not {"iframe", "object", "embed", "form", "base", "link"} & set(seen.tags)
    assert not seen.handlers
    assert seen.tags.count("img") == len(re.findall(r'<img src="data:', hostile[1].read_text()))
    assert all(link.startswith("#") for link in seen.links)
    shown = "".join(seen.text)
    assert "<script>document.title='owned'</script>" in shown  # as text


def test_hostile_text_does_not_tear_tables(hostile):
    by_name = {file.name: file for file in hostile[0]}
    rows = [line for line in by_name["values.md"].read_text().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {20}
    assert not any(re.search(r"<[a-zA-Z/!]", row) for row in rows)
    csv = pd.read_csv(by_name["values.csv"])
    assert len(csv) == 2 * (2 + len(HOSTILE)) + len(HOSTILE)  # two noise levels, and failures
    assert csv["estimator"].nunique() == 2 + 2 * len(HOSTILE)


def test_hostile_text_is_on_one_line_of_a_terminal(hostile, made):
    records = [*made[:2], *(value(text, build="tweedie") for text in HOSTILE)]
    lines = book.said(book.chapters(records)[0], 120).splitlines()
    assert sum("0.0" in line or "\u00b1" in line for line in lines) >= len(HOSTILE)
    assert not any("\u202e" in line or "\x1b" in line for line in lines)


# the first page, and scores


def test_a_store_of_several_tasks_has_one_page_that_leads_to_all(made, tmp_path):
    others = [value("alone", status="timeout", task="interface")]
    files, path = book.write(stored(tmp_path / "store", [*made, *others]), tmp_path / "out")
    seen = read(path)
    assert path == tmp_path / "out" / "index.html"
    assert tmp_path / "out" / "value" / "index.html" in files
    for link in seen.links:
        file, _, anchor = link.partition("#")
        target = read(path.parent / file) if file else seen
        assert anchor in {"", "-", *target.ids}, link  # `-` is nowhere: it closes a panel
    text = path.read_text()
    assert "trust tweedie" in text or "Trust" in text
    assert "alone" in text
    assert "not testable here" in text


@pytest.mark.parametrize(
    ("held", "verdict"),
    [([True, True], "held"), ([True, False, None], "did not hold"), ([True, None], "undecided"),
     ([], "not testable here")],
)  # fmt: skip
def test_a_score_shows_the_evidence_that_decides(held, verdict):
    claim = Claim("it is so", "arXiv:2605.19804, Table 1", "rule", iter, "3.2 times", "table1")
    found = [Evidence(f"world {k}", h, f"{k} [{k}, {k}]") for k, h in enumerate(held)]
    (line,) = scores.scores([Verdict(claim, {}, found)])
    assert (line.table, line.paper, line.verdict) == ("table1", "3.2 times", verdict)
    decides = {"held": "world 0", "did not hold": "world 1", "undecided": "world 1"}
    assert line.here.startswith(decides.get(verdict, "\u2013"))


def test_claims_of_others_are_no_claims_of_the_paper():
    own = Claim("we say so", "this project", "rule", iter)
    assert scores.scores([Verdict(own, {}, [])]) == []


# plots


def test_variance_is_drawn_where_there_is_some_and_the_others_are_named():
    frame = frames.tidy([value("truth", build="truth"), value("mc"), value("calm")])
    noisy = frame["estimator"] == "mc"
    frame.loc[noisy, ["variance", "variance_lo", "variance_hi"]] = [0.3, 0.2, 0.4]
    (facet,) = facets.split(frame)
    (axis,) = figures.variance(facet, estimators.palette(frame)).axes
    (line,) = [one for one in axis.get_lines() if one.get_label() == "mc"]
    assert line.get_ydata().tolist() == [0.3, 0.3]
    assert axis.get_title(loc="right") == "none: truth, calm"
    calm = facet._replace(frame=facet.frame[facet.frame["estimator"] == "calm"])
    assert figures.variance(calm, estimators.palette(frame)) is None


def test_memory_falls_from_the_dearest_to_the_leanest():
    rows = pd.DataFrame({
        "phase": "cost", "method": ["mid", "mid", "big", "small", "unknown"],
        "batch": [1, 4, 4, 4, 4], "memory": [9e9, 30e6, 70e6, 10e6, np.nan],
    })  # fmt: skip
    figure = memory(facets.Facet("-", "-", "-", "-", "-", rows, []))
    bars = [(round(p.get_x()), round(p.get_width())) for p in figure.axes[0].patches]
    assert bars == [(30e6, 40e6), (10e6, 20e6), (0, 10e6)]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["big", "mid", "small"]
    assert [t.get_text() for t in figure.axes[0].texts] == ["70 MB", "30 MB", "10 MB"]


def test_of_very_many_tables_only_the_plainest_of_each_world_is_drawn():
    names = [f"{world}{k}" for world in "ab" for k in range(9)]
    rows = pd.DataFrame({"estimator": [f"e{k}" for k in range(60)]})
    made = [facets.Facet(name[0], name, name, "", name, rows[:1], []) for name in names]
    assert [facet.slug for facet in plots._few(made)] == ["a0", "b0"]
    assert plots._few(made[:16]) == made[:16]
    large = [facet._replace(frame=rows) for facet in made[:9]]
    assert plots._few(large[:8]) == large[:8]
    assert [facet.slug for facet in plots._few(large)] == ["a0"]


def test_a_legend_names_what_it_can_carry_and_the_rest_is_grey():
    names = [f"e{k}" for k in range(50)]
    rows = pd.DataFrame({
        "estimator": names, "estimator_build": "monte_carlo", "bias": np.arange(50.0),
        "bias_realised": np.arange(50.0),
    })  # fmt: skip
    few = rows[:40]
    for frame, named in ((few, 40), (rows, 1)):
        figure = realised(
            facets.Facet("-", "-", "-", "-", "-", frame, []), estimators.palette(frame)
        )
        handles, labels = figure.axes[0].get_legend_handles_labels()
        assert len(labels) == named + (named < len(frame))
        assert sum(len(handle.get_xdata()) for handle in handles) == len(frame)
    assert "all others" in labels
