"""Every interface trained alike: figures by brute force, resuming, and the claim's verdicts."""

import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from bench import suite as suites
from bench.cell import Part
from bench.how import INLINE
from bench.metrics.retrieval import both_ways
from bench.plan import plan
from bench.report import interface, sheet
from bench.report.claims import judged
from bench.resolve import UnknownName
from bench.run import run
from bench.spearman import rank_correlation
from bench.store import Store
from bench.tasks import interface as task
from stitchvm.backbone import NULL
from stitchvm.distill import Recipe
from stitchvm.path import noise
from stitchvm.streams import Streams, derive

BLOCKS, ENTRIES, PICTURES = range(1, 9), range(1, 7), 200
TINY = {"steps": [2], "images": [16], "pictures": [12], "probes": [40], "entries": [[1, 6]]}


def record(i, rows, **changes):
    """The record of one cell, as a store holds it."""
    return {
        "id": f"cell-{i}", "status": "ok", "suite": "fig6", "quick": False,
        "isolation": "process", "started": "2026-01-02T03:04:05+00:00", "wall_seconds": 60.0,
        "coordinates": {"estimator": "stitched", "world": "shapes", "reward": "clip",
                        "i": str(i), "variant": ""},
        "spec": {"task": "interface", "estimator": {"build": "stitched", "settings": {}},
                 "world": {"settings": {}}, "seed": 0, "protocol": {"i": i}},
        "environment": {"device": "cpu", "threads": 1, "commit": "0123abc", "dirty": False,
                        "device_name": "Test CPU", "versions": {"python": "3", "torch": "2"}},
        "rows": rows,
    } | changes  # fmt: skip


def row(i, j, share, loss):
    """A pair that finds a share of the captions; the same pictures are hard for every pair."""
    hits = (np.arange(PICTURES) < share * PICTURES).astype(float)
    picked = {(2, 1): ["paper"], (1, 1): ["cheap"]}.get((i, j), [])
    return {
        "i": i, "j": j, "picked": picked, "loss": loss, "normalised": loss / j, "r2": 0.5,
        "held_loss": 1.1 * loss, "held_normalised": 1.1 * loss / j, "held_r2": 0.5,
        "cost": 1e8, "seconds": 3.0, "clean_recall": 0.95,
        "metrics": {"recall": hits.tolist(), "recall_before": (hits / 2).tolist(),
                    "error": (1 - hits / 2).tolist(), "error_before": (2 - hits).tolist()},
    }  # fmt: skip


def records(shares):
    """Pairs whose loss grows with j, with recalls by (i, j)."""
    return [
        record(i, [row(i, j, shares(i, j), 0.1 * j**3 * (1.2 - 0.1 * (i == 2))) for j in ENTRIES])
        for i in BLOCKS
    ]


def filtered(i, j):
    """Late entries do not recover."""
    return 0.8 if j < 5 else 0.1


def facets(shares):
    return interface.SHEET.split(interface.tidy(records(shares)))


def verdicts(shares):
    found = judged(interface.SHEET.claims, facets(shares))
    return [verdict.in_world("shapes") for verdict in found]


# figures


def test_recall_weighs_both_directions_alike_whatever_their_numbers():
    images, texts = torch.tensor([True, False, True, True]), torch.tensor([False, True])
    x = both_ways(images, texts)
    assert x.tolist() == [0.75, 0, 0.75, 0.75, 0, 1.5]
    assert x.mean() == (3 / 4 + 1 / 2) / 2
    assert both_ways(images, images).tolist() == [1, 0, 1, 1] * 2


def test_rank_correlation_is_spearmans_with_an_interval_that_covers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    found = rank_correlation(x, y)
    assert found.mean == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    true = 6 / np.pi * np.arcsin(0.5 / 2)  # of a normal pair with correlation 0.5
    covered = 0
    for _ in range(400):
        a, b = rng.normal(size=(2, 30))
        lo, hi = rank_correlation(a, 0.5 * a + 0.75**0.5 * b)[1:3]
        covered += lo <= true <= hi
    assert 0.92 < covered / 400 < 0.98
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]).mean)
    assert rank_correlation([1, 2, 3], [4, 5, 6])[0] == 1


@pytest.fixture(scope="module")
def cells():
    return plan(suites.load("fig6"), changes={**TINY, "i": [1, 2]})


@pytest.fixture(scope="module")
def store(cells, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    assert run(cells[:1], store, INLINE) == {"ok": 1, "error": 0, "before": 0}
    return store


def test_a_cell_trains_every_j_and_the_next_run_goes_on_after_it(
    cells, store, monkeypatch, tmp_path
):
    (found,) = store.latest().values()
    assert [(r["i"], r["j"]) for r in found["rows"]] == [(1, 1), (1, 6)]
    assert {len(r["metrics"]["error"]) for r in found["rows"]} == {12}
    assert all(
        r["metrics"]["error"] != r["metrics"]["error_before"] and r["held_loss"] > 0
        for r in found["rows"]
    )
    assert {"search", "trained", "judged"} <= set(found["phases"])
    ran = []
    shutil.copytree(store.path, tmp_path / "store")
    monkeypatch.setattr("bench.backends.inline.measure", lambda job, _: ran.append(job.cell.id))
    assert run(cells, Store(tmp_path / "store"), INLINE)["before"] == 1
    assert ran == [cells[1].id]


def test_pairs_are_judged_as_by_brute_force(store):
    """The error and the recall of one pair before finetuning, picture by picture."""
    from bench.worlds.shapes import shapes  # noqa: PLC0415
    from bench.worlds.shapes.make.clip import Told  # noqa: PLC0415
    from bench.worlds.shapes.scenes import draw, render  # noqa: PLC0415

    world, (found,) = shapes(), store.latest().values()
    pair = found["rows"][1]
    reward, told = world.reward("clip"), Told(draw("eval", 12))
    c = list(world.evaluation(reward, 12).texts)
    protocol = task.InterfaceProtocol.model_validate(found["spec"]["protocol"])
    searched = task._search(world, reward, protocol, 0)
    begun = task.STITCHED["stitched"](
        task.Given(world.backbone, reward, searched, (1, 6), render(told.scenes))
    )
    with torch.no_grad():
        x_0 = render(told.scenes)
        z_0, e = world.backbone.encode(x_0), reward.features(x_0).embedding
        eps = Streams.of(0, "interface", rows=12).child("eps").normal(z_0)
        t = Recipe(steps=1).draw(12, torch.Generator().manual_seed(derive(0, "times")))
        errors = [
            (begun.features(noise(z_0, t, eps)[k : k + 1], t[k : k + 1], [NULL]).embedding - e[k])
            .square()
            .sum()
            .item()
            for k in range(12)
        ]
        at = torch.full((12,), protocol.sigma)
        values = torch.stack([begun(noise(z_0, at, eps), at, [text] * 12) for text in c], 1)
    assert pair["metrics"]["error_before"] == pytest.approx(errors, rel=1e-4)
    found = [c[values[k].argmax()] in told.captions[k] for k in range(12)]
    found_by = [text in told.captions[values[:, k].argmax()] for k, text in enumerate(c)]
    weights = [(12 + len(c)) / 24] * 12 + [(12 + len(c)) / (2 * len(c))] * len(c)
    hits = [w * hit for w, hit in zip(weights, found + found_by, strict=True)]
    assert pair["metrics"]["recall_before"] == pytest.approx(hits)


def test_what_cannot_be_judged_is_refused(cells):
    spec = cells[0].spec
    gaussian = spec.world.model_copy(update={"build": "gaussian", "settings": {}})
    linear = {"world": gaussian, "reward": Part(build="linear")}
    with pytest.raises(ValueError, match="expected a reward that world 'gaussian' can test"):
        task.run(spec.model_copy(update=linear))
    with pytest.raises(ValueError, match=r"tested by retrieval, got \['srcc'\]"):
        task.run(spec.model_copy(update={"reward": Part(build="aesthetic")}))


def test_no_arm_is_told_what_it_is_to_find():
    assert "stitched" in task.STITCHED
    assert "stitched_prompt" not in task.STITCHED


def test_planning_names_pairs_and_refuses_other_fields(tmp_path):
    found = plan(suites.load("fig6"))
    assert [cell.coordinates["i"] for cell in found] == [str(i) for i in BLOCKS]
    assert [c.spec.protocol.i for c in plan(suites.load("fig6"), only="i=3")] == [3]
    assert len({cell.id for cell in found}) == 8
    with pytest.raises(UnknownName, match="unknown field 'members': expected one of batch, e"):
        plan(suites.load("fig6"), changes={"members": [3]})
    with pytest.raises(UnknownName, match="unknown estimator 'vae_stitch'"):
        plan(suites.load("fig6"), changes={"estimator": ["vae_stitch"]})


# the claim


def test_it_holds_where_only_high_losses_are_catastrophic():
    assert verdicts(filtered) == ["held"] * 4


def test_it_did_not_hold_where_a_near_pair_is_catastrophic():
    found = verdicts(lambda i, j: 0.1 if (i, j) == (2, 1) else filtered(i, j))
    assert found == ["did not hold"] * 3 + ["held"]  # (2, 1) is the pair of lowest loss as well


def test_a_pick_that_is_far_off_is_not_as_good_as_any():
    late = lambda i, j: 0.9 if j == 4 else 0.75 if j < 4 else 0.1  # noqa: E731
    assert verdicts(late)[2:] == ["did not hold", "did not hold"]


def test_it_is_undecided_where_nothing_is_catastrophic_or_the_pictures_are_too_few():
    assert verdicts(lambda i, j: 0.8) == ["undecided", "undecided", "held", "held"]
    assert verdicts(lambda i, j: 0.8 if (i, j) != (3, 2) else 0.83)[2] == "undecided"


@pytest.mark.parametrize(("share", "state"), [(0.2, True), (0.4, None), (0.6, False)])
def test_catastrophic_is_less_than_half_of_the_best(share, state):
    frame = interface.tidy([record(1, [row(1, 1, 0.8, 1.0), row(1, 2, share, 2.0)])])
    assert interface.catastrophic(frame.iloc[1], frame.iloc[0]) is state


# the report


def test_the_report_says_what_losses_compare_and_what_the_paper_found(tmp_path):
    frame = interface.tidy(records(filtered))
    drawn = lambda facet: [interface.Drawn("scatter", "-", interface.scatter(facet))]  # noqa: E731
    shown = interface.SHEET._replace(figures=drawn)
    files, page = sheet.write(shown, frame, [], [], tmp_path)
    text = page.read_text()
    assert "The pair of lowest loss, (2, 1), ends at Recall@1 0.80" in text
    assert "Catastrophic: (1, 5), (1, 6), (2, 5)" in text
    assert "varies 220 times as much as what enters block 1" in text
    assert "the lowest loss is at (4, 1), Recall@1 48.3 % against 49.7 %" in text
    assert "13 of its 36 pairs are catastrophic, 0 of the 2 within 5 %" in text
    assert "Shapes world: held" in text
    assert {path.suffix for path in files} == {".csv", ".md", ".tex", ".png", ".pdf"}
    csv = pd.read_csv(tmp_path / "tables" / "rows.csv")
    assert len(csv) == 48
    assert csv["recall"].tolist() == frame["recall"].tolist()


def test_heat_maps_frame_the_picks_and_number_every_pair():
    (facet,) = facets(filtered)
    figure = interface.heat(facet)
    after = next(axis for axis in figure.axes if axis.get_title() == "Recall@1 after finetuning")
    assert [patch.get_xy() for patch in after.patches] == [(0.5, -0.5), (-0.5, -0.5)]
    assert [text.get_text() for text in after.texts].count("0.80") == 32
    shades = figure.axes[0].get_images()[0].get_array()
    assert shades.min() == shades[0, 1]  # raw losses are ranked


def test_a_loss_that_tells_nothing_apart_does_not_filter():
    (facet,) = facets(filtered)
    flat = facet._replace(frame=facet.frame.assign(loss=1.0))
    (found,) = interface.filters(flat, "loss")
    assert found.held is False
    assert "of 48 pairs within 5 % of the lowest 16 catastrophic and 0 unclear" in found.figures


def test_grids_have_a_dash_where_a_pair_is_missing():
    frame = interface.tidy(records(filtered))
    shown = interface.grid(frame[(frame["i"] != 3) | (frame["j"] != 2)], "recall")
    assert shown.shape == (6, 9)
    assert shown.loc[0, "i = 2"] == "0.800*"
    assert shown.loc[0, "i = 1"] == "0.800~"
    assert shown.loc[1, "i = 3"] == "\u2013"
    assert shown[""].tolist() == [f"j = {j}" for j in ENTRIES]


def test_rank_correlations_stand_beside_those_within_each_j():
    shown = interface.ranks(interface.tidy(records(filtered))).set_index(["loss", "quality"])
    assert shown.loc[("raw loss", "Recall@1"), "all pairs"].startswith("-0.8")
    assert shown.loc[("raw loss", "Recall@1"), "j = 1"] == "\u2013"  # all the same
