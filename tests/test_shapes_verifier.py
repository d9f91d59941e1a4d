"""The verifier against scenes whose objects are known."""

import random
from collections import Counter
from functools import cache

import pytest
import torch

from bench.worlds.shapes.captions import KIND_NAMES, Seen, holds, parse, seen, told
from bench.worlds.shapes.scenes import BACKGROUNDS, PIXELS, SHAPES, distance, draw, render
from bench.worlds.shapes.verifier import (
    AREA,
    MOST_SEEN,
    SINK,
    UNKNOWN,
    correct,
    look,
    verify,
)

SCENES = 600
NEAR = 0.25  # pixels from the true centre


@cache
def true():
    return seen(draw("eval", SCENES))


@cache
def pictures():
    return render(draw("eval", SCENES))


@cache
def found():
    return look(pictures())


@cache
def captions():
    """One true caption of every kind of every scene: scene and text."""
    rng = random.Random(0)
    out = []
    for i, scene in enumerate(true()):
        by_kind = {}
        for text in told(scene):
            by_kind.setdefault(parse(text).kind, []).append(text)
        out += [(i, kind, rng.choice(texts)) for kind, texts in by_kind.items()]
    return out


def same(one, other):
    """Whether two sights agree on everything, whatever the order."""
    left = list(other.things)
    for t in one.things:
        fits = [
            u for u in left
            if (u.shape, u.colour, u.size) == (t.shape, t.colour, t.size)
            and max(abs(u.x - t.x), abs(u.y - t.y)) < NEAR
        ]  # fmt: skip
        if not fits:
            return False
        left.remove(fits[0])
    return not left and one.background == other.background


def picture(colour, cover, ground=0.4):
    """A flat object on a flat background, (1, 3, H, W)."""
    o = torch.tensor(colour)[:, None, None]
    return (2 * torch.lerp(torch.full_like(o, ground), o, cover) - 1)[None]


def test_everything_in_true_pictures_is_seen():
    agree = [same(a, b) for a, b in zip(true(), found(), strict=True)]
    assert sum(agree) >= 0.995 * SCENES


def test_held_out_combinations_are_seen():
    scenes = draw("shift", 200)
    agree = [same(a, b) for a, b in zip(seen(scenes), look(render(scenes)), strict=True)]
    assert sum(agree) >= 199


def test_true_captions_of_every_kind_are_judged_true():
    right, total = Counter(), Counter()
    for i, kind, text in captions():
        right[kind] += holds(parse(text), found()[i])
        total[kind] += 1
    assert set(total) == set(KIND_NAMES)
    assert all(right[k] >= 0.98 * total[k] for k in KIND_NAMES), (right, total)


def test_captions_of_other_scenes_are_judged_false():
    rng = random.Random(1)
    right, total = Counter(), Counter()
    for _, kind, text in captions():
        i = rng.randrange(SCENES)
        if not holds(parse(text), true()[i]):
            right[kind] += not holds(parse(text), found()[i])
            total[kind] += 1
    assert all(right[k] >= 0.99 * total[k] for k in KIND_NAMES), (right, total)


def test_blurred_pictures_are_still_read():
    x = torch.nn.functional.pad(pictures()[:200], (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([0.15, 0.7, 0.15])
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    blurred = torch.nn.functional.conv2d(x, kernel, groups=3)
    agree = [same(a, b) for a, b in zip(true(), look(blurred), strict=False)]
    assert sum(agree) >= 190


def test_a_batch_reads_as_its_pictures_do_one_by_one():
    for i in range(8):
        assert same(look(pictures()[i : i + 1])[0], found()[i])


def test_parts_and_verdicts_agree():
    texts = [next(iter(told(s))) for s in true()[:40]]
    texts[1::2] = ["three small purple rings on a dark background"] * 20
    judged = verify(pictures()[:40], texts)
    assert all(p.keys() >= {"count", "objects"} for p in judged)
    assert judged[1].keys() == {"count", "objects", "background"}
    verdict = correct(pictures()[:40], texts)
    assert verdict.shape == (40,)
    assert verdict.dtype == torch.bool
    assert verdict.tolist() == [all(p.values()) for p in judged]
    assert verdict[::2].all()
    assert not verdict[1::2].any()


@pytest.mark.parametrize("grey", [0.12, 0.43, 0.82])
def test_a_blank_picture_shows_only_its_background(grey):
    word = next(w for w, (low, high) in BACKGROUNDS.items() if low < grey < high)
    x = torch.full((2, 3, PIXELS, PIXELS), 2 * grey - 1)
    assert look(x) == [Seen((), word)] * 2
    assert verify(x[:1], [f"a circle on a {word} background"]) == [
        {"count": False, "objects": False, "background": True}
    ]


def test_no_pictures_no_verdicts():
    x = torch.zeros(0, 3, PIXELS, PIXELS)
    assert look(x) == []
    assert correct(x, []).shape == (0,)


def test_what_has_no_shape_is_unknown():
    bar = torch.zeros(PIXELS, PIXELS)
    bar[14:17, 2:30] = 1
    (sight,) = look(picture((0.9, 0.1, 0.1), bar))
    assert [(t.shape, t.colour) for t in sight.things] == [(UNKNOWN, "red")]
    assert sight.background == "grey"


def test_what_has_no_colour_is_unknown():
    block = torch.zeros(PIXELS, PIXELS)
    block[10:17, 10:17] = 1
    (sight,) = look(picture((0.05, 0.05, 0.05), block, ground=0.8))
    assert [(t.shape, t.colour) for t in sight.things] == [("square", UNKNOWN)]


def test_a_picture_without_background_has_an_unknown_one():
    (sight,) = look(picture((0.9, 0.1, 0.1), torch.ones(PIXELS, PIXELS)))
    assert sight.background == UNKNOWN
    assert [t.shape for t in sight.things] == [UNKNOWN]


def test_noise_shows_few_things_and_pleases_no_caption():
    x = torch.randn(20, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    assert all(len(s.things) <= MOST_SEEN for s in look(x))
    assert not correct(x, ["a red circle and a blue square"] * 20).any()


def test_touching_squares_of_one_colour_are_two():
    cover = torch.zeros(PIXELS, PIXELS)
    cover[4:15, 4:15] = cover[14:25, 14:25] = 1
    (sight,) = look(picture((0.1, 0.68, 0.2), cover))
    assert [(t.shape, t.size) for t in sight.things] == [("square", "large")] * 2


def test_outlines_have_the_area_and_centroid_that_are_assumed():
    axis = torch.linspace(-1.3, 1.3, 1001)
    inside = distance(
        axis[None, None, :].expand(len(SHAPES), -1, -1),
        axis[None, :, None].expand(len(SHAPES), -1, -1),
        torch.ones(len(SHAPES), 1, 1),
        torch.arange(len(SHAPES)),
    ).lt(0).double()  # fmt: skip
    area = inside.sum((1, 2)) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(area, torch.tensor(AREA, dtype=area.dtype), atol=0.01, rtol=0)
    below = (inside.sum(2) * axis).sum(1) / inside.sum((1, 2))
    torch.testing.assert_close(below, torch.tensor(SINK, dtype=area.dtype), atol=0.002, rtol=0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 64, 64)])
def test_pictures_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"expected x of shape \(B, 3, 32, 32\), got"):
        look(torch.zeros(shape))


def test_numbers_that_are_none_are_refused():
    x = torch.zeros(1, 3, PIXELS, PIXELS)
    x[0, 0, 0, :2] = torch.nan
    with pytest.raises(ValueError, match="expected numbers in x, got 2 NaN"):
        look(x)


def test_captions_and_pictures_are_as_many():
    with pytest.raises(ValueError, match="expected 1 captions, got 2"):
        verify(torch.zeros(1, 3, PIXELS, PIXELS), ["a circle"] * 2)
    with pytest.raises(ValueError, match="expected words of"):
        verify(torch.zeros(1, 3, PIXELS, PIXELS), ["a dog"])
