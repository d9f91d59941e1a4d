"""Scenes and captions: what is drawn, what is said of it, and what of that holds."""

from dataclasses import fields
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.worlds.shapes.captions import (
    COUNT,
    KIND_NAMES,
    LEVELS,
    PLACES,
    RELATIONS,
    Caption,
    Phrase,
    Seen,
    Thing,
    holds,
    parse,
    parts,
    place,
    possible,
    relation,
    seen,
    told,
)
from bench.worlds.shapes.scenes import (
    BACKGROUNDS,
    CHUNK,
    COLOURS,
    DIGITS,
    GAP,
    HELD_OUT,
    MARGIN,
    PIXELS,
    SHAPES,
    SIZES,
    distance,
    draw,
    render,
)
from bench.worlds.shapes.scenes import (
    LEVELS as LIGHT_LEVELS,
)

SCENES = 600  # more than a chunk


@cache
def drawn(split):
    return draw(split, SCENES)


def pairs(scenes):
    """Named colour and shape of every object, by scene."""
    return [{(t.colour, t.shape) for t in one.things} for one in seen(scenes)]


def thing(shape="circle", colour="red", size="small", x=0.0, y=0.0):
    return Thing(shape, colour, size, x, y)


def test_the_first_scenes_are_the_same_whatever_the_count():
    some = draw("eval", 20)
    assert len(some) == 20
    for f in fields(some):
        torch.testing.assert_close(getattr(some, f.name), getattr(drawn("eval")[:20], f.name))
    assert len(drawn("eval")) == SCENES > CHUNK
    assert not torch.equal(draw("eval", 20, seed=1).x, some.x)
    assert not torch.equal(drawn("eval").x[:50], drawn("eval").x[CHUNK : CHUNK + 50])


@pytest.mark.parametrize("split", DIGITS)
def test_splits_share_no_light_level(split):
    assert set((drawn(split).level % 10).tolist()) == set(DIGITS[split])
    assert sum(len(d) for d in DIGITS.values()) == len({d for ds in DIGITS.values() for d in ds})


@pytest.mark.parametrize("split", DIGITS)
def test_held_out_combinations_are_in_every_scene_of_shift_and_in_no_other(split):
    assert {bool(p & set(HELD_OUT)) for p in pairs(drawn(split))} == {split == "shift"}


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"expected a split in \['train', .*got 'test'"):
        draw("test", 1)


@pytest.mark.parametrize("split", ["train", "shift"])
def test_objects_lie_inside_and_apart(split):
    scenes = drawn(split)
    reach = torch.maximum(scenes.x.abs(), scenes.y.abs()) + scenes.radius
    assert (reach <= PIXELS / 2 - MARGIN + 1e-5).all()
    centres = torch.stack([scenes.x, scenes.y], -1)
    apart = torch.cdist(centres, centres) - scenes.radius[:, :, None] - scenes.radius[:, None, :]
    both = scenes.present[:, :, None] & scenes.present[:, None, :]
    other = both & ~torch.eye(3, dtype=torch.bool)
    assert (apart[other] >= GAP - 1e-5).all()
    limits = torch.tensor(list(SIZES.values()))[scenes.size]
    assert (scenes.radius >= limits[..., 0]).all()
    assert (scenes.radius <= limits[..., 1]).all()


def test_a_picture_has_the_colour_of_each_object_deep_inside_it():
    scenes = drawn("train")
    picture = render(scenes)
    assert picture.shape == (SCENES, 3, PIXELS, PIXELS)
    assert picture.min() >= -1
    assert picture.max() <= 1
    axis = torch.arange(PIXELS) + 0.5 - PIXELS / 2
    rows = torch.arange(SCENES)
    for k in range(3):
        d = distance(
            axis[None, None, :] - scenes.x[:, k, None, None],
            axis[None, :, None] - scenes.y[:, k, None, None],
            scenes.radius[:, k, None, None],
            scenes.shape[:, k],
        )
        deepest = d.flatten(1).argmin(1)
        down, across = deepest // PIXELS, deepest % PIXELS
        offset = torch.stack([axis[across], axis[down]], -1) / (PIXELS / 2)
        light = scenes.level / LIGHT_LEVELS + (scenes.slope * offset).sum(-1)
        expected = (2 * scenes.rgb[:, k] * light[:, None] - 1).clamp(-1, 1)
        there = scenes.present[:, k]
        torch.testing.assert_close(picture[rows, :, down, across][there], expected[there])


@pytest.mark.parametrize(
    ("shape", "x", "y", "expected"),  # for a radius of 1
    [
        ("circle", 0.0, 0.0, -1.0),
        ("circle", 3.0, 4.0, 4.0),
        ("square", 0.88, 0.3, 0.0),
        ("square", 0.0, 0.0, -0.88),
        ("triangle", 0.0, 0.83, 0.0),
        ("triangle", 0.0, -0.82, 0.0),
        ("triangle", 0.0, 0.28, -0.55),
        ("cross", 1.0, 0.0, 0.0),
        ("cross", 0.0, 0.0, -0.32),
        ("cross", 0.6, 0.6, 0.28),
        ("ring", 0.0, 0.0, 0.44),
        ("ring", 0.0, 0.72, -0.28),
        ("ring", 1.0, 0.0, 0.0),
    ],
)
def test_distances_to_the_outlines(shape, x, y, expected):
    at = (torch.tensor([[[2 * v]]]) for v in (x, y, 1.0))
    d = distance(*at, torch.tensor([SHAPES.index(shape)]))
    torch.testing.assert_close(d, torch.tensor([[[2 * expected]]]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("split", ["eval", "shift"])
def test_all_captions_of_a_scene_parse_hold_and_have_probability_one(split):
    kinds = set()
    for scene in seen(drawn(split)[:200]):
        captions = told(scene)
        assert sum(captions.values()) == pytest.approx(1)
        for text in captions:
            caption = parse(text)
            assert str(caption) == text
            assert holds(caption, scene)
            kinds.add(caption.kind)
    assert kinds == set(KIND_NAMES)


@st.composite
def sentences(draw_):
    level = draw_(st.sampled_from(LEVELS))
    phrase = st.builds(
        Phrase,
        st.sampled_from(list(COUNT.values())),
        st.sampled_from(SHAPES),
        st.sampled_from(list(COLOURS)) if "colour" in level else st.none(),
        st.sampled_from(list(SIZES)) if "size" in level else st.none(),
    )
    most = 2 if "size" in level else 3  # three sizes make too long a sentence
    phrases = draw_(st.lists(phrase, min_size=1, max_size=most, unique=True))
    background = draw_(st.none() | st.sampled_from(list(BACKGROUNDS)))
    caption = Caption(tuple(phrases), None, background)
    if caption.count == 1:
        where = draw_(st.none() | st.sampled_from(PLACES))
        caption = Caption(caption.phrases, None, background, where)
    elif [p.count for p in phrases] == [1, 1]:
        relation_ = draw_(st.none() | st.sampled_from(RELATIONS))
        caption = Caption(caption.phrases, relation_, background)
    return caption


@settings(max_examples=200, deadline=None)
@given(sentences().filter(lambda c: c.count <= 3))
def test_a_sentence_says_what_it_was_made_of(caption):
    assert parse(str(caption)) == caption


def test_commas_may_touch_their_word():
    assert parse("a circle, a square and a ring") == parse("a circle , a square and a ring")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty one"),
        ("  ", "got an empty one"),
        ("a red dog", r"expected words of .*; got \['dog'\] in 'a red dog'"),
        ("circle", "such as 'a red circle', got 'circle'"),
        ("a circles", "got 'a circles'"),
        ("two circle", "got 'two circle'"),
        ("a red small circle", "got 'a red small circle'"),
        ("a red circle and a square", "got 'a red circle and a square'"),
        ("a circle and a circle", "got 'a circle and a circle'"),
        ("a circle left of", "got 'a circle left of'"),
        ("two circles left of a square", "got 'two circles left of a square'"),
        ("two circles at the top", "got 'two circles at the top'"),
        ("three circles and a square", "got 'three circles and a square'"),
        ("a circle at the top on a dark background", "got 'a circle at the top on a dark"),
        ("on a dark background", "got 'on a dark background'"),
    ],
)
def test_what_the_grammar_cannot_make_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


ONE = Seen((thing(x=-8.0),), "dark")
TWO = Seen((thing(x=-5.0), thing("square", "blue", "large", x=5.0)), "grey")
ALIKE = Seen((thing(x=-5.0), thing(size="large", x=5.0), thing("ring", y=9.0)), "light")


@pytest.mark.parametrize(
    ("scene", "text", "expected"),
    [
        (ONE, "a circle", {"count": True, "objects": True}),
        (ONE, "a blue circle", {"count": True, "objects": False}),
        (ONE, "a large red circle", {"count": True, "objects": False}),
        (ONE, "two circles", {"count": False, "objects": False}),
        (ONE, "a circle on the left", {"count": True, "objects": True, "place": True}),
        (ONE, "a ring on the left", {"count": True, "objects": False, "place": False}),
        (ONE, "a circle at the top", {"count": True, "objects": True, "place": False}),
        (ONE, "a circle on a dark background",
         {"count": True, "objects": True, "background": True}),
        (ONE, "a square on a grey background",
         {"count": True, "objects": False, "background": False}),
        (TWO, "a circle", {"count": False, "objects": True}),
        (TWO, "a circle on the left", {"count": False, "objects": True, "place": True}),
        (TWO, "a square and a circle", {"count": True, "objects": True}),
        (TWO, "a red square and a blue circle", {"count": True, "objects": False}),
        (TWO, "a circle left of a square", {"count": True, "objects": True, "relation": True}),
        (TWO, "a square left of a circle", {"count": True, "objects": True, "relation": False}),
        (TWO, "a ring left of a square", {"count": True, "objects": False, "relation": False}),
        (ALIKE, "two circles and a ring", {"count": True, "objects": True}),
        (ALIKE, "two circles", {"count": False, "objects": True}),
        (ALIKE, "three circles", {"count": True, "objects": False}),
        (ALIKE, "two small circles and a small ring", {"count": True, "objects": False}),
        (ALIKE, "a large circle left of a small circle",
         {"count": False, "objects": True, "relation": False}),
        (Seen((), "dark"), "a circle on a dark background",
         {"count": False, "objects": False, "background": True}),
    ],
)  # fmt: skip
def test_parts_by_hand(scene, text, expected):
    assert parts(parse(text), scene) == expected
    assert holds(parse(text), scene) == all(expected.values())


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (4.0, 0.0, "left of"),
        (-4.0, 2.0, "right of"),
        (0.0, 4.0, "above"),
        (2.0, -4.0, "below"),
        (3.0, 2.0, "left of"),
        (2.9, 2.0, None),
        (3.0, -3.0, None),
    ],
)
def test_relations_by_hand(dx, dy, expected):
    assert relation(thing(x=1.0, y=1.0), thing(x=1.0 + dx, y=1.0 + dy)) == expected


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (3.0, -3.0, "in the centre"),
        (3.5, 0.0, None),
        (-5.0, 0.0, "on the left"),
        (9.0, 6.0, "on the right"),
        (9.0, 6.5, None),
        (4.0, -7.0, "at the top"),
        (0.0, 5.0, "at the bottom"),
    ],
)
def test_places_by_hand(x, y, expected):
    assert place(thing(x=x, y=y)) == expected


@pytest.mark.parametrize(
    ("things", "text", "p"),
    [
        ((thing(),), "a circle", 0.25 * 0.6),
        ((thing(),), "a small red circle on a dark background", 0.25 * 0.2),
        ((thing(),), "a red circle in the centre", 0.25 * 0.2),
        (TWO.things, "a circle left of a square", 0.25 * 0.5 * 0.5 * 0.8),
        (TWO.things, "a blue square and a red circle", 0.25 * 0.5 * 0.5 * 0.8),
        (ALIKE.things, "a ring and two circles", 0.25 * 0.5 * 0.8),
        (ALIKE.things, "a large circle , a small circle and a small ring", 0.0),
    ],
)
def test_probabilities_by_hand(things, text, p):
    captions = told(Seen(things, "dark"))
    levels = {
        (c.phrases[0].colour is None, c.phrases[0].size is None) for c in map(parse, captions)
    }
    assert captions.get(text, 0.0) == pytest.approx(p * 4 / len(levels))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a circle at the top", "single"),
        ("a small circle", "single"),
        ("a red circle", "colours"),
        ("a circle and a ring", "two"),
        ("two rings", "counting"),
        ("two rings and a circle", "counting"),
        ("a red circle above a blue ring", "position"),
        ("a red circle and a blue ring", "attribution"),
    ],
)
def test_kinds(text, kind):
    assert parse(text).kind == kind


@pytest.mark.parametrize(
    ("text", "usual", "shifted"),
    [
        ("a circle", True, False),
        ("a ring", True, False),
        ("a blue ring", True, False),
        ("a red ring", False, True),
        ("a red ring and a blue circle", False, True),
    ],
)
def test_held_out_combinations_are_possible_only_under_shift(text, usual, shifted):
    assert possible(parse(text)) == usual
    assert possible(parse(text), shift=True) == shifted
