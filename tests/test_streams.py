"""Streams: what a row draws depends on its seed alone, and the draws are what they claim to be."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stitchvm.streams import Streams, derive

SMALL = settings(max_examples=30, deadline=None)
SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6)
LABEL = st.one_of(st.integers(0, 99), st.text("abc", min_size=1, max_size=3))
DTYPE = st.sampled_from([torch.float64, torch.float32])
ROWS = 4000


def draws(streams, latent=(2, 3), dtype=torch.float64):
    """Two normals and a uniform a row, one after the other."""
    like = torch.empty(len(streams), *latent, dtype=dtype)
    first, second = streams.normal(like), streams.normal(like)
    return torch.cat([first.flatten(1), second.flatten(1), streams.uniform(dtype)[:, None]], 1)


# derive

GOLDEN = {
    (0,): 3456079177858693020,
    (0, "contract"): 2651286799338281034,
    (7, "rollout", 3): 5368801767685862873,
    (2**62, "scene 0", 12, "eps"): 2737043443600062795,
}


@pytest.mark.parametrize("labels", GOLDEN)
def test_seeds_never_change(labels):
    """Committed results name their seeds: another scheme would make every one of them stale."""
    assert derive(*labels) == GOLDEN[labels]


@SMALL
@given(st.integers(0, 2**63 - 1), st.lists(LABEL, max_size=3))
def test_a_seed_is_the_digest_of_its_path(seed, labels):
    text = "/".join(str(part) for part in [seed, *labels])
    digest = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
    assert derive(seed, *labels) == digest // 2
    assert 0 <= derive(seed, *labels) < 2**63


# rows


@SMALL
@given(SEEDS, DTYPE, st.data())
def test_a_row_draws_the_same_in_any_company(seeds, dtype, data):
    rows = data.draw(st.lists(st.integers(0, len(seeds) - 1), min_size=1, max_size=8))
    together = draws(Streams(seeds), dtype=dtype)
    chosen = draws(Streams([seeds[row] for row in rows]), dtype=dtype)
    assert torch.equal(chosen, together[rows])


@pytest.mark.parametrize("latent", [(1,), (15,), (16,), (4, 8, 8)])
def test_a_row_draws_the_same_alone_whatever_its_size(latent):
    """Sixteen numbers are where the generator's vector path begins."""
    streams = Streams.of(0, "size", rows=3)
    together = draws(streams, latent)
    alone = [draws(streams[row : row + 1], latent) for row in range(3)]
    assert torch.equal(torch.cat(alone), together)


def test_streams_of_more_rows_begin_with_those_of_fewer():
    assert Streams.of(3, "a", rows=5).seeds[:2] == Streams.of(3, "a", rows=2).seeds
    assert Streams.of(3, "a", rows=2).seeds == (derive(3, "a", 0), derive(3, "a", 1))


def test_a_stream_goes_on_where_it_stopped_and_a_slice_starts_again():
    streams, like = Streams.of(0, rows=3), torch.empty(3, 2)
    first, second = streams.normal(like), streams.normal(like)
    assert not torch.equal(first, second)
    assert torch.equal(streams[1:].normal(like[1:]), first[1:])


# children


@SMALL
@given(SEEDS, LABEL, st.integers(0, 3))
def test_children_do_not_depend_on_what_was_drawn_before(seeds, label, before):
    fresh, used = Streams(seeds), Streams(seeds)
    for _ in range(before):
        draws(used)
    assert torch.equal(draws(used.child(label)), draws(fresh.child(label)))
    assert torch.equal(draws(used.split(range(2))), draws(fresh.split(range(2))))


@SMALL
@given(SEEDS, LABEL)
def test_drawing_from_a_child_leaves_the_parent_alone(seeds, label):
    parent, alone = Streams(seeds), Streams(seeds)
    draws(parent.child(label))
    assert torch.equal(draws(parent), draws(alone))


@SMALL
@given(SEEDS, st.lists(LABEL, min_size=2, max_size=2, unique_by=str))
def test_different_labels_draw_differently(seeds, labels):
    one, other = (draws(Streams(seeds).child(label)) for label in labels)
    assert not bool((one == other).all(1).any())
    assert not bool((one == draws(Streams(seeds))).all(1).any())


def test_nested_labels_are_one_path():
    parent = Streams.of(0, rows=2)
    assert parent.child("a", 1).seeds == tuple(derive(s, "a", 1) for s in parent.seeds)
    assert parent.child("a").child(1).seeds != parent.child("a", 1).seeds


@SMALL
@given(SEEDS, st.integers(1, 5), st.integers(0, 5))
def test_split_is_index_major_and_a_longer_one_begins_with_a_shorter(seeds, short, more):
    parent = Streams(seeds)
    some, many = parent.split(range(short)), parent.split(range(short + more))
    assert len(many) == (short + more) * len(seeds)
    assert torch.equal(draws(many)[: len(some)], draws(some))
    for n in range(short):
        rows = slice(n * len(seeds), (n + 1) * len(seeds))
        assert some.seeds[rows] == parent.child(n).seeds


def test_a_range_is_split_in_chunks_alike():
    parent = Streams.of(0, rows=3)
    whole = parent.split(range(5)).seeds
    assert parent.split(range(2)).seeds + parent.split(range(2, 5)).seeds == whole


# distributions: across streams, which is where a poor derivation would show


def test_normals_are_standard_normal_across_and_within_streams():
    x = Streams.of(0, "moments", rows=ROWS).normal(torch.empty(ROWS, 2, dtype=torch.float64))
    # Standard errors over n draws: 1 / sqrt(n) of the mean and of the correlation, sqrt(2 / n)
    # of the variance, sqrt(96 / n) of the fourth moment; four of them are allowed.
    four = 4 / ROWS**0.5
    for column in x.T.numpy():
        assert abs(column.mean()) < four
        assert column.var() == pytest.approx(1, abs=four * 2**0.5)
        assert (column**4).mean() == pytest.approx(3, abs=four * 96**0.5)
        assert stats.kstest(column, "norm").pvalue > 1e-3
    assert abs(float((x[:, 0] * x[:, 1]).mean())) < four
    assert abs(float((x[1:, 0] * x[:-1, 0]).mean())) < four  # neighbouring rows


def test_uniforms_are_uniform_across_streams():
    streams = Streams.of(0, "moments", rows=ROWS)
    u = streams.uniform()
    assert u.shape == (ROWS,)
    assert u.dtype == torch.float64
    assert 0 <= float(u.min())
    assert float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / ROWS) ** 0.5)
    assert float(u.var()) == pytest.approx(1 / 12, abs=4 * (1 / 180 / ROWS) ** 0.5)
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    again = streams.uniform()
    assert abs(float(torch.corrcoef(torch.stack([u, again]))[0, 1])) < 4 / ROWS**0.5


def test_children_are_uncorrelated_with_each_other_and_their_parents():
    parent, like = Streams.of(0, "moments", rows=ROWS), torch.empty(ROWS, 1, dtype=torch.float64)
    family = [parent, parent.child("a"), parent.child("b"), parent.child("a", 0)]
    table = torch.corrcoef(torch.cat([member.normal(like) for member in family], 1).T)
    assert float((table - torch.eye(4)).abs().max()) < 4 / ROWS**0.5


@pytest.mark.parametrize("rows", [1, 4])
def test_another_number_of_rows_is_refused(rows):
    message = f"^expected 3 rows, one per stream, got {rows}$"
    with pytest.raises(ValueError, match=message):
        Streams.of(0, rows=3).normal(torch.empty(rows, 2))
