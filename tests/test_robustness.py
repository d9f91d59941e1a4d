"""The robustness task: what embeddings of noisy latents still find, prefer and rank."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.constant import build as constant
from baselines.tweedie import build as tweedie
from bench import references, spearman, stats
from bench import robustness as frames
from bench import suite as suites
from bench.how import INLINE
from bench.plan import plan
from bench.protocols import Protocol, Robustness
from bench.run import run
from bench.store import Store
from bench.tasks import robustness
from bench.worlds import WORLDS
from bench.worlds.shapes.make.clip import Told, recalled
from bench.worlds.shapes.scenes import draw
from stitchvm.backbone import NULL
from stitchvm.evaluation import Preferences, Ratings, Retrieval
from stitchvm.path import match_snr, noise
from stitchvm.reward import Reward
from stitchvm.streams import Streams

MEMBERS = 64
WORLD = {"build": "shapes", "members": MEMBERS, "prompt_members": 8, "per_kind": 1}
DEFAULTS = {"world": WORLD, "reward": "clip", "items": 6, "sigmas": [0.25, 0.75]}
DEFAULTS |= {"batch": 4, "calls": 1}
TESTED = ("clip", "hps", "aesthetic")
FAST = settings(max_examples=30, deadline=None)


class Dots(Reward):
    """score = <e, text(c)> for texts that are numbers between commas."""

    depth = 1

    def head(self, x, j):
        raise NotImplementedError

    advance = tail = tail_weights = head_weights = head

    def score(self, e, c):
        return (e * torch.tensor([[float(k) for k in one.split(",")] for one in c])).sum(-1)


def no_images():
    return iter(())


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STITCHVM_CACHE", str(tmp_path_factory.mktemp("banks")))
        yield WORLDS["shapes"](members=MEMBERS, prompt_members=8, per_kind=1)


def planned(**changes):
    fields = DEFAULTS | changes
    axes = {"estimator": fields.pop("estimator", ["clean", "ceiling", TWEEDIE])}
    return plan(
        suites.Suite(
            name="tiny", about="-", minutes=0.1, task="robustness", defaults=fields, axes=axes
        )
    )


TWEEDIE = {"name": "tweedie null", "build": "tweedie", "posterior": "data"}


# evaluation sets


def test_recall_counts_every_true_text_and_image():
    e = torch.eye(3)
    texts = ["9,0,0", "1,0,1", "0,5,0"]  # nearest of the images: 0, 1 (over 0 and 2), 1
    true = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 1, 0]]).bool()
    marks = Retrieval(no_images, texts, true).marks(Dots(), e)
    assert marks["image_to_text"].tolist() == [True, True, True]  # 0 -> 0, 1 -> 2, 2 -> 1
    assert marks["text_to_image"].tolist() == [True, False, True]  # 1 -> image 0, tied with 2
    true[0, 0], true[0, 1] = False, True
    marks = Retrieval(no_images, texts, true).marks(Dots(), e)
    assert marks["image_to_text"].tolist() == [False, True, True]
    assert marks["text_to_image"].tolist() == [False, True, True]


@FAST
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_recall_is_brute_force(images, texts, seed):
    rng = np.random.default_rng(seed)
    e = torch.tensor(rng.normal(size=(images, 2)))
    words = [f"{a:.6f},{b:.6f}" for a, b in rng.normal(size=(texts, 2))]
    true = torch.tensor(rng.random((images, texts)) < 0.4)
    true[true.sum(1) == 0, 0] = True
    true[0, true.sum(0) == 0] = True
    marks = Retrieval(no_images, words, true).marks(Dots(), e)

    def score(row, text):
        return sum(
            x * float(y) for x, y in zip(e[row].tolist(), words[text].split(","), strict=True)
        )

    nearest_text = [max(range(texts), key=lambda k: score(row, k)) for row in range(images)]
    nearest_image = [max(range(images), key=lambda k: score(k, text)) for text in range(texts)]
    assert marks["image_to_text"].tolist() == [
        bool(true[row, text]) for row, text in enumerate(nearest_text)
    ]
    assert marks["text_to_image"].tolist() == [
        bool(true[row, text]) for text, row in enumerate(nearest_image)
    ]


def test_retrieval_refuses_what_cannot_be_found():
    with pytest.raises(ValueError, match="expected a true partner of every image"):
        Retrieval(no_images, ["1"], torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match="expected a true partner of every text"):
        Retrieval(no_images, ["1", "2"], torch.tensor([[True, False]]))


def test_preferences_by_hand():
    e = torch.tensor([[1.0], [2.0], [3.0], [3.0]])
    pairs = torch.tensor([[1, 0], [0, 1], [2, 3]])
    marks = Preferences(no_images, ["1", "1", "1"], pairs).marks(Dots(), e)
    assert marks["preference"].tolist() == [1.0, 0.0, 0.5]
    turned = Preferences(no_images, ["-1", "-1", "-1"], pairs).marks(Dots(), e)
    assert turned["preference"].tolist() == [0.0, 1.0, 0.5]


def test_ratings_keep_score_and_rating(shapes):
    reward = shapes.reward("aesthetic")
    e = torch.nn.functional.normalize(
        torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    )
    rated = torch.arange(5.0)
    marks = Ratings(no_images, rated).marks(reward, e)["srcc"]
    assert torch.equal(marks[:, 0], reward.score(e, ["a circle"] * 5))
    assert torch.equal(marks[:, 1], rated)


def test_clips_scores_are_those_of_single_pairs(shapes):
    reward, texts = shapes.reward("clip"), list(shapes.prompts[:4])
    e = torch.nn.functional.normalize(
        torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    )
    torch.testing.assert_close(reward.scores(e, texts), Reward.scores(reward, e, texts))


def test_the_shapes_sets_are_held_out_and_say_what_is_true(shapes):
    clip, hps, rated = (shapes.evaluation(shapes.reward(n), 8) for n in TESTED)
    told = Told(draw("eval", 8))
    assert len(set(clip.texts)) == len(clip.texts)
    assert torch.equal(clip.true, told.true(clip.texts))
    assert torch.cat(list(hps.images())).shape[0] == 16
    assert sorted(hps.pairs.flatten().tolist()) == list(range(16))
    assert (hps.pairs[:, 0] - hps.pairs[:, 1]).abs().tolist() == [8] * 8
    assert len(rated.rated) == 8
    again = shapes.evaluation(shapes.reward("hps"), 8)
    assert torch.equal(again.pairs, hps.pairs)
    assert shapes.evaluation(shapes.reward("pick"), 8) is None


def test_quality_the_clean_reward_does_its_job(shapes):
    """On 100 items, so with room for chance below the exam's 0.94, 0.85 and 0.90 of thousands."""
    for name in TESTED:
        reward = shapes.reward(name)
        found = shapes.evaluation(reward, 100)
        x = torch.cat(list(found.images()))
        with torch.no_grad():
            e = reward.features(x).embedding
            marks = found.marks(reward, e)
        if name == "clip":
            expected = recalled(e, reward.texts(found.texts), found.true)
            assert torch.equal(marks["image_to_text"], expected)
            assert marks["image_to_text"].float().mean() > 0.9
            assert marks["text_to_image"].float().mean() > 0.8
        elif name == "hps":
            assert marks["preference"].mean() > 0.8
        else:
            assert scipy.stats.spearmanr(marks["srcc"]).statistic > 0.75


# the ceiling


def test_the_ceiling_is_bayes_by_hand(shapes):
    reward = shapes.reward("clip")
    tested = shapes.backbone.encode(torch.cat(list(shapes.evaluation(reward, 3).images()))[:3])
    t = torch.tensor(0.9)
    z_t = noise(tested, t, Streams.of(0, "eps", rows=3).normal(tested))
    bank = shapes.bank("data", NULL)
    members = torch.cat([bank.latents, tested.double()])
    with torch.no_grad():
        own = reward.features(shapes.backbone.decode(tested)).embedding
        found = shapes.ceiling(reward, tested).features(z_t, t, [NULL] * 3).embedding
    e = torch.cat([bank.embeddings["clip"], own]).double()
    gaps = z_t.double().flatten(1)[:, None] - 0.1 * members.flatten(1)
    weights = torch.softmax(-gaps.pow(2).sum(2) / (2 * 0.9**2), 1)
    torch.testing.assert_close(found.double(), weights @ e, rtol=0, atol=1e-5)
    assert weights.max(1).values.max() < 0.99  # several members take part


def test_the_ceiling_is_the_clean_latent_where_noise_vanishes(shapes):
    reward = shapes.reward("clip")
    images = shapes.evaluation(reward, 4).images
    tested = references.Tested(images, shapes.backbone.encode(torch.cat(list(images()))))
    rows, t = slice(0, 4), torch.tensor(0.01)
    z_t = noise(tested.z_0, t, Streams.of(0, "eps", rows=4).normal(tested.z_0))
    ceiling = references.ceiling(shapes, reward, tested)(z_t, t, rows)
    clean = references.clean(shapes, reward, tested, source="latents")(z_t, t, rows)
    torch.testing.assert_close(ceiling, clean, rtol=0, atol=1e-5)
    pixels = references.clean(shapes, reward, tested)(z_t, t, rows)
    assert (pixels - clean).abs().max() > 1e-3  # the autoencoder is not the identity


def test_a_world_without_a_bank_has_no_ceiling(world):
    tested = references.Tested(no_images, torch.zeros(1, *world.backbone.latent))
    with pytest.raises(ValueError, match="expected a world with a bank of data, got 'gaussian'"):
        references.ceiling(world, world.reward("linear"), tested)


# estimators


def test_estimators_that_would_be_told_the_answer_are_declined(shapes):
    reward = shapes.reward("clip")
    assert robustness.suitable(tweedie(shapes, reward, posterior="data"))
    with pytest.raises(ValueError, match="got Tweedie under the prompt posterior: it sees the"):
        robustness.suitable(tweedie(shapes, reward))
    with pytest.raises(ValueError, match="expected an EmbeddingEstimator.*Constant has a value"):
        robustness.suitable(constant(shapes, reward))


# cells


@pytest.fixture(scope="module")
def store(shapes, tmp_path_factory):
    """A store with the cells of three estimators, and two that were declined."""
    found = Store(tmp_path_factory.mktemp("store"))
    cells = planned(estimator=["clean", "ceiling", TWEEDIE, "tweedie", "constant"])
    assert run(cells, found, INLINE) == {"ok": 3, "error": 2, "before": 0}
    return found


def test_items_are_kept_and_figures_follow_from_them(store):
    frame = frames.tidy(store.latest().values())
    assert len(frame) == 3 * 2 * 2  # estimators, noise levels, figures
    for row in frame.to_dict("records"):
        assert row["value"] == np.mean(row["items"])
        assert row["n"] == len(row["items"]) >= 5
        assert (row["value_lo"], row["value_hi"]) == stats.share_interval(row["items"])[1:3]
    clean = frame[frame["estimator"] == "clean"]
    assert (clean["of_clean"] == 1).all()
    assert clean["seconds"].isna().all()
    assert (frame.loc[frame["estimator"] == "tweedie null", "seconds"] > 0).all()
    assert (frame.loc[frame["estimator"] == "tweedie null", "calls_velocity"] == 1).all()


def test_marks_are_those_of_embeddings_asked_directly(shapes, store):
    reward = shapes.reward("clip")
    found = shapes.evaluation(reward, 6)
    z_0 = torch.cat([shapes.backbone.encode(x) for x in found.images()])
    eps = Streams.of(0, "evaluation", rows=6).normal(z_0)
    t = torch.tensor(0.75)
    estimator = tweedie(shapes, reward, posterior="data")
    with torch.no_grad():
        e = estimator.features(noise(z_0, t, eps), t, ["a red circle"] * 6).embedding
    (record,) = [r for r in store.latest().values()
                 if r["coordinates"]["estimator"] == "tweedie null"]  # fmt: skip
    marks = record["rows"][1]["marks"]
    for name, expected in found.marks(reward, e).items():
        assert marks[name] == expected.float().tolist()


def test_declined_cells_are_recorded_with_their_reason(store):
    reasons = {
        r["coordinates"]["estimator"]: r["reason"]
        for r in store.latest().values()
        if r["status"] == "error"
    }
    assert set(reasons) == {"tweedie", "constant"}
    assert "it sees the prompt, which is the answer" in reasons["tweedie"]


def test_a_second_run_measures_only_what_failed(store):
    cells = planned(estimator=["clean", "ceiling", TWEEDIE])
    assert run(cells, store, INLINE) == {"ok": 0, "error": 0, "before": 3}


def test_noise_levels_are_matched_on_the_snr_grid(shapes, tmp_path):
    cells, found = planned(estimator=["clean"], grid="snr"), Store(tmp_path)
    assert run(cells, found, INLINE)["ok"] == 1
    (record,) = found.latest().values()
    assert [row["sigma"] for row in record["rows"]] == [match_snr(s, 64) for s in (0.25, 0.75)]
    assert [row["sigma_reference"] for row in record["rows"]] == [0.25, 0.75]


def test_a_reward_without_a_set_fails_with_a_reason(tmp_path):
    cells, found = planned(world="gaussian", reward="linear", estimator=["clean"]), Store(tmp_path)
    assert run(cells, found, INLINE)["error"] == 1
    (record,) = found.latest().values()
    assert record["reason"] == (
        "ValueError: expected a reward that world 'gaussian' can test, got 'linear'"
    )


def test_fields_of_the_other_task_are_refused():
    with pytest.raises(ValueError, match="unknown field 'replicates': expected one of .*items"):
        planned(replicates=3)


def test_protocols_do_not_read_each_others_records():
    assert set(Robustness.model_fields) - set(Protocol.model_fields) == {"items"}
    with pytest.raises(ValueError, match="items"):
        Protocol(items=3)


# rank correlation


RANKED = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=12).filter(
    lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
)


@FAST
@given(RANKED)
def test_srcc_is_scipys_with_ties(pairs):
    expected = scipy.stats.spearmanr(np.array(pairs)).statistic
    assert spearman.srcc(np.array(pairs)).mean == pytest.approx(expected, abs=1e-12)


def test_every_resample_is_scipys(monkeypatch):
    rng = np.random.default_rng(0)
    items = np.stack([rng.integers(0, 9, 30), rng.normal(size=30)], 1).astype(float)
    _, drawn = spearman._correlations(items)
    counts = spearman._counts(30)
    for k in (0, 7, 99):
        again = np.repeat(items, counts[:, k + 1].astype(int), axis=0)
        assert drawn[k] == pytest.approx(scipy.stats.spearmanr(again).statistic, abs=1e-12)


def rated(rng, n, noise):
    y = rng.normal(size=n)
    return [np.stack([y + s * rng.normal(size=n), y], 1) for s in noise]


def test_srcc_intervals_cover():
    rng, n = np.random.default_rng(0), 150
    rho = [6 / np.pi * np.arcsin(1 / np.sqrt(1 + s**2) / 2) for s in (0.5, 1.0)]  # of normals
    data = [rated(rng, n, (0.5, 1.0)) for _ in range(300)]

    def share(intervals, truth):
        return np.mean([i.lo <= truth <= i.hi for i in intervals])

    # the standard error of a coverage of 0.95 over 300 data sets is 0.013
    assert share([spearman.srcc(a) for a, _ in data], rho[0]) == pytest.approx(0.94, abs=0.04)
    ratios = [spearman.srcc_ratio(b, a) for a, b in data]
    assert share(ratios, rho[1] / rho[0]) == pytest.approx(0.94, abs=0.04)
    tests = [spearman.srcc_paired(b, a) for a, b in data]
    gaps = [test.difference for test in tests]
    assert share(gaps, rho[1] - rho[0]) == pytest.approx(0.94, abs=0.04)


def test_srcc_paired_finds_no_difference_as_often_as_it_should():
    rng = np.random.default_rng(1)
    p = [spearman.srcc_paired(*rated(rng, 150, (0.7, 0.7))).p for _ in range(300)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.04)


def test_srcc_pairs_and_edges():
    a, b = rated(np.random.default_rng(2), 100, (0.5, 1.0))
    assert spearman.srcc_ratio(a, a)[:3] == (1, 1, 1)
    same = spearman.srcc_paired(a, a)
    assert (same.difference.mean, same.p) == (0, 1)
    one, other = spearman.srcc_paired(a, b), spearman.srcc_paired(b, a)
    assert one.difference.mean == -other.difference.mean > 0
    assert one.p == pytest.approx(other.p)
    assert np.isnan(spearman.srcc(np.c_[np.ones(9), np.arange(9)])[:3]).all()
    with pytest.raises(ValueError, match=r"scores and ratings of shape \(n, 2\), got \(3,\)"):
        spearman.srcc(np.zeros(3))
