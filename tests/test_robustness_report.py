"""Tables, claims, plots and the page of robustness, on records whose answer is known."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from bench import robustness
from bench.cell import Part, Spec
from bench.cli import cli
from bench.frame import failures, tidy
from bench.protocols import Robustness
from bench.report.robustness import claims, comparisons, page, paper, plots, tables
from bench.report.views import by_task
from bench.stats import ratio_interval
from bench.store import Store
from stitchvm.path import match_snr

SIGMAS = (0.1, 0.5, 0.9)
N = 400
ESTIMATORS = {  # label to build, and the share it gets right by noise level
    "clean": ("clean", (0.9, 0.9, 0.9)),
    "Bayes ceiling": ("ceiling", (0.9, 0.88, 0.7)),
    "StitchVM": ("stitched", (0.9, 0.88, 0.65)),
    "StitchVM free": ("stitched", (0.9, 0.6, 0.3)),
    "VAE stitch": ("vae_stitch", (0.7, 0.4, 0.1)),
    "tweedie null": ("tweedie", (0.895, 0.85, 0.55)),
}


def right(share, n=N, seed=0):
    """The first items of one fixed order: what a better estimator gets right includes the rest."""
    order = np.random.default_rng(seed).permutation(n)
    return (order < round(share * n)).astype(float)


def ranked(share, n=N):
    rng = np.random.default_rng(1)
    rating, other = rng.normal(size=(2, n))
    return np.stack([share * rating + (1 - share**2) ** 0.5 * other, rating], 1)


MARKS = {"hps": ("preference", right), "aesthetic": ("srcc", ranked)}


def record(label, reward="hps", grid="plain", status="ok", shift=0.0, *, shares=None, **changes):
    build, usual = ESTIMATORS.get(label, (label, ()))
    figure, made = MARKS[reward]
    settings = {"source": "pixels"} if build == "clean" else {"model": label}
    spec = Spec(
        task="robustness",
        world=Part(build="shapes"),
        reward=Part(build=reward),
        estimator=Part(build=build, settings=settings),
        protocol=Robustness(sigmas=SIGMAS, grid=grid, items=N),
        prompts="0",
    )
    rows = [
        {
            "sigma": sigma if grid == "plain" else match_snr(sigma, 64), "sigma_reference": sigma,
            "z_digest": f"{grid}{sigma}", "length": 1.0 if build != "ceiling" else 1 - sigma / 4,
            "marks": {figure: made(share - shift).tolist()},
            "call_seconds": [] if build in ("clean", "ceiling") else [0.1, 0.2],
            "call_rows": [] if build in ("clean", "ceiling") else [10, 10],
            "calls": {} if build in ("clean", "ceiling") else {"velocity": 1.0},
        }
        for sigma, share in zip(SIGMAS, shares or usual, strict=True)
    ]  # fmt: skip
    return {
        "schema": 1, "id": spec.id, "spec": spec.model_dump(mode="json"), "suite": "table5",
        "coordinates": {"estimator": label, "world": "shapes", "reward": reward, "grid": grid,
                        "variant": ""},
        "quick": False, "status": status, "reason": None if status == "ok" else "it declined",
        "isolation": "inline", "started": "2026-01-02T03:04:05+00:00", "wall_seconds": 2.0,
        "rows": rows if status == "ok" else [], "phases": {}, "attempt": "0001",
        "environment": {
            "versions": {"python": "3.12", "torch": "2.9"}, "commit": "0123abc", "dirty": False,
            "device": "cpu", "device_name": "Test CPU", "threads": 1,
        },
    } | changes  # fmt: skip


def records(rewards=("hps", "aesthetic"), grids=("plain", "snr")):
    made = [record(name, r, g) for r in rewards for g in grids for name in ESTIMATORS]
    return [*made, record("constant", status="error", shares=(0.5, 0.5, 0.5))]


@pytest.fixture(scope="module")
def known():
    return records()


@pytest.fixture(scope="module")
def frame(known):
    return robustness.tidy(known)


def compared(frame, name="preference", grid="plain", known=()):
    found = comparisons.split(frame, failures(known))
    return next(c for c in found if (c.name, c.grid) == (name, grid))


def verdicts(made, number):
    return claims.judge(robustness.tidy(made))[number].verdicts


# frame


def test_ratios_are_paired_with_the_references(frame):
    row = frame[(frame["estimator"] == "StitchVM") & (frame["figure"] == "preference")].iloc[2]
    assert (row["value"], row["of_clean"]) == (0.65, pytest.approx(0.65 / 0.9))
    expected = ratio_interval(right(0.65), right(0.7))
    assert row[["of_ceiling", "of_ceiling_lo", "of_ceiling_hi"]].tolist() == list(expected[:3])
    assert np.isnan(frame.loc[frame["estimator"] == "clean", "seconds"]).all()
    assert row["seconds"] == pytest.approx(0.015)


def test_without_references_ratios_are_missing():
    found = robustness.tidy([record("StitchVM")])
    assert found["of_ceiling"].isna().all()
    assert found["of_clean"].isna().all()
    assert "\u2013" in tables.ratio_table(compared(found), "of_clean").iloc[0].tolist()


def test_ratios_to_what_is_hardly_known_are_missing():
    low = record("Bayes ceiling", shares=(0.9, 0.01, 0.9))
    found = robustness.tidy([low, record("StitchVM")])
    mine = found[found["estimator"] == "StitchVM"]
    assert mine["of_ceiling"].isna().tolist() == [False, True, False]
    made = [record("Bayes ceiling", grid="snr", shares=(0.9, 0.01, 0.9)),
            record("StitchVM", grid="snr", shares=(0.9, 0.9, 0.9))]  # fmt: skip
    assert verdicts(made, 0) == {ON_SNR: "undecided"}


def test_clean_latents_are_not_the_clean_images(known):
    latents = record("clean", shares=(0.5, 0.5, 0.5))
    latents["spec"]["estimator"]["settings"]["source"] = "latents"
    latents["coordinates"]["estimator"] = "clean latents"
    found = robustness.tidy([*known, latents])
    row = found[found["estimator"] == "StitchVM"].iloc[0]
    assert row["of_clean"] == pytest.approx(1)


def test_tasks_do_not_see_each_others_records(known):
    other = {**known[0], "spec": {**known[0]["spec"], "task": "value"}}
    found = by_task([*known, other])
    assert found == {"robustness": known, "value": [other]}
    assert len(failures(known)) == 1


# tables


def test_value_table_by_hand(frame, known):
    table = tables.value_table(compared(frame, known=known))
    assert list(table.columns) == ["estimator", "sigma 0.1", "sigma 0.5", "sigma 0.9"]
    rows = {row[0]: row[1:] for row in table.to_numpy().tolist()}
    assert next(iter(rows)) == "clean"
    assert rows["StitchVM"][1] == "88.0 [84.4, 90.8] *"  # Wilson's interval of 352 of 400
    assert rows["tweedie null"][0].endswith("~")
    assert not rows["VAE stitch"][1].endswith("~")
    assert rows["constant (error: it declined)"] == ["\u2013"] * 3
    assert rows["paper: StitchVM, SD 3.5 Medium (HPSv2 on HPDv2) (%)"] == ["81.8", "80.9", "74.7"]


def test_ratio_tables_by_hand(frame):
    table = tables.ratio_table(compared(frame), "of_ceiling").set_index("estimator")
    assert table.loc["Bayes ceiling"].tolist() == ["100", "100", "100"]
    assert table.loc["StitchVM", "sigma 0.9"].startswith("92.9 [")  # 0.65 / 0.7
    clean = tables.ratio_table(compared(frame), "of_clean").set_index("estimator")
    of_paper = clean.loc["paper: StitchVM, SD 3.5 Medium (HPSv2 on HPDv2) (%)"]
    assert of_paper.tolist() == ["98.2", "97.2", "89.7"]


def test_matched_levels_are_named(frame):
    table = tables.value_table(compared(frame, grid="snr"))
    assert table.columns[2] == "sigma 0.5 (0.059)"


def test_best_is_marked_after_holm(frame):
    marks = comparisons.against_best(compared(frame))
    assert marks[0.5, "StitchVM"] == "best"
    assert (0.5, "VAE stitch") not in marks
    assert not {name for _, name in marks} & {"clean", "Bayes ceiling"}


def test_rows_on_other_latents_are_left_out(known):
    other = record("noisy_student", shares=(0.9, 0.9, 0.9))
    for row in other["rows"]:
        row["z_digest"] = "other"
    found = compared(robustness.tidy([*known, other]))
    assert "noisy_student" not in set(found.frame["estimator"])


def test_files_are_written_in_every_format(frame, known, tmp_path):
    csv, md, tex = tables.write(frame, tmp_path, failures(known))
    every = pd.read_csv(csv)
    back, failed = every[every["status"] == "ok"], every[every["status"] != "ok"]
    assert len(back) == len(frame)
    assert failed[["estimator", "status", "reason"]].to_numpy().tolist() == [
        ["constant", "error", "it declined"]
    ]
    assert failed["value"].isna().all()
    assert back["value"].tolist() == frame["value"].tolist()
    assert "## HPS: pairwise preference accuracy, plain noise levels" in md.read_text()
    assert md.read_text().count("share of the Bayes ceiling kept") == 4
    assert r"\toprule" in tex.read_text()
    assert "88.0 [84.4, 90.8] *" in tables.text(frame)


def test_the_papers_figures_have_one_for_each_level():
    data = paper.published()
    for figures in data["figures"].values():
        for table in figures.values():
            builds = set(table) - {"about"}
            assert builds <= set(data["names"])
            assert all(len(table[build]) == len(data["sigmas"]) for build in builds)


# claims


def made(shares, grid="snr", vae=(0.5, 0.4, 0.3)):
    return [
        record("clean", grid=grid),
        record("Bayes ceiling", grid=grid, shares=(0.9, 0.9, 0.9)),
        record("StitchVM", grid=grid, shares=shares),
        record("VAE stitch", grid=grid, shares=vae),
    ]


ON_SNR = "shapes world, snr grid, StitchVM"


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((0.9, 0.9, 0.85), "held"),
        ((0.9, 0.8, 0.85), "did not hold"),  # 0.89 of the ceiling in the middle
        ((0.9, 0.9, 0.6), "did not hold"),  # 0.67 at the end
        ((0.9, 0.9, 0.76), "undecided"),  # 0.844 at the end
    ],
)
def test_share_of_the_ceiling(shares, verdict):
    assert verdicts(made(shares), 0) == {ON_SNR: verdict}


def test_the_ceiling_is_judged_on_the_matched_grid_only():
    assert verdicts(made((0.9, 0.9, 0.9), grid="plain"), 0) == {}


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((0.9, 0.85, 0.1), "held"),  # the last level does not count
        ((0.9, 0.7, 0.9), "did not hold"),
        ((0.9, 0.82, 0.9), "undecided"),  # 0.911
    ],
)
def test_share_of_clean(shares, verdict):
    assert verdicts(made(shares), 1) == {ON_SNR: verdict}


@pytest.mark.parametrize(
    ("vae", "verdict"),
    [
        ((0.5, 0.4, 0.3), "held"),
        ((0.5, 0.4, 0.9), "did not hold"),
        ((0.5, 0.4, 0.8), "undecided"),
    ],
)
def test_order_of_stitched_and_vae(vae, verdict):
    found = verdicts(made((0.9, 0.9, 0.8), vae=vae), 2)
    assert found == {"shapes world, snr grid, StitchVM over VAE stitch": verdict}


def test_each_arm_is_judged_by_itself(frame):
    found = claims.judge(frame)[0].verdicts
    assert found["shapes world, snr grid, StitchVM free"] == "did not hold"
    assert found[ON_SNR] != "did not hold"


def test_evidence_names_the_worst_level():
    (evidence,) = claims.judge(robustness.tidy(made((0.9, 0.8, 0.85))))[0].evidence
    assert re.search(r"StitchVM: 88.9 \[.*\] % of the ceiling at sigma 0.5 \(needs 95\)",
                     evidence.figures)  # fmt: skip


# plots and page


def test_plots_draw_every_estimator_and_both_references(frame):
    drawn = plots.figures(frame)
    assert len(drawn) == 4  # rewards and grids
    axis = next(iter(drawn.values())).axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(ESTIMATORS) <= set(lines)
    ceiling = frame[(frame["estimator"] == "Bayes ceiling") & (frame["grid"] == "plain")]
    ceiling = ceiling[ceiling["figure"] == "srcc"].sort_values("sigma_reference")
    np.testing.assert_array_equal(lines["Bayes ceiling"].get_ydata(), ceiling["value"])


def test_the_page_says_what_was_found(frame, known, tmp_path):
    path = page.write(frame, plots.figures(frame), failures(known), ["torn"], tmp_path / "p.html")
    html = path.read_text()
    for text in ("did not hold", "88.0 [84.4, 90.8] *", "it declined", "torn",
                 "length of the ceiling&#39;s embedding 0.97, 0.88, 0.78"):  # fmt: skip
        assert text in html
    assert html.count("<script") == 1
    assert html.count("data:image/svg+xml") == 4


def stored(path, made):
    store = Store(path)
    store.prepare()
    for one in made:
        store.write(store.begin(one["id"]), one, {})
    return store


def test_commands_show_a_store_of_this_task_alone(tmp_path):
    made = records(rewards=["hps"], grids=["plain"]) + records(["aesthetic"], ["snr"])
    store = stored(tmp_path / "store", made)

    def call(*arguments):
        result = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    shown = call("table", store.path, "--out", tmp_path / "tables")
    assert "88.0 [84.4, 90.8] *" in shown
    assert "failed: constant (hps): it declined" in shown
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == [
        "robustness.csv", "robustness.md", "robustness.tex"]  # fmt: skip
    assert "index.html" in call("report", store.path, "--out", tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "88.0 [84.4, 90.8] *" in page
    assert "srcc-snr.png" in call("plot", store.path, "--y", "srcc", "--out", tmp_path)
    refused = CliRunner().invoke(cli, ["plot", str(store.path)])
    assert refused.exit_code == 2
    assert "expected --y one of preference, srcc of this store, got 'rmse'" in refused.output


def test_a_mixed_store_gives_both_and_leaves_values_as_they_are(tmp_path, known):
    suite = tmp_path / "mine.yaml"
    world = {"build": "gaussian", "latent": [2, 2, 1], "components": 3, "rank": 2, "prompts": 4}
    suite.write_text(yaml.safe_dump({
        "name": "mine", "about": "-", "minutes": 0.1, "isolation": "inline",
        "defaults": {"world": world, "reward": "linear", "prompts": 3, "calls": 1,
                     "sigmas": [0.25], "replicates": 2, "gradient": False},
        "axes": {"estimator": ["constant", "tweedie"]},
    }))  # fmt: skip
    path = tmp_path / "store"
    assert CliRunner().invoke(cli, ["run", str(suite), "--store", str(path)]).exit_code == 0
    before = list(Store(path).latest().values())
    store = stored(path, [record(name, grid="snr") for name in ESTIMATORS])
    after = list(store.latest().values())
    assert len(after) == len(before) + len(ESTIMATORS)
    pd.testing.assert_frame_equal(tidy(by_task(after)["value"]), tidy(before))
    assert CliRunner().invoke(cli, ["report", str(path)]).exit_code == 0
    for task in ("value", "robustness"):
        assert (path / "report" / task / "index.html").is_file()
