"""Captions: a small grammar, what a caption says, and with what probability a scene is told so.

    caption   body [suffix]
    body      phrases ("a red ring", "two circles and a square", "three small blue rings")
              | phrase RELATION phrase
    phrase    a|two|three [size] [colour] shape(s), all phrases of a caption at one level of detail
    suffix    "on a dark background" | "at the top" ...: the place of a single object

A caption names every object of its scene.  p(c | scene) is the product of the uniform choices
made in `told`: level of detail, form and order, suffix.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from bench.worlds.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    KINDS,
    SEEN,
    SHAPES,
    SIZES,
    Scenes,
)

COUNT = {"a": 1, "two": 2, "three": 3}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the centre")
CLEAR = 1.5  # one direction counts if it is this many times the other
NEAR, FAR = 3.0, 5.0  # pixels from the middle: closer is the centre, farther is a side
ON, AT = 0.2, 0.2  # probability of a suffix about the background, about the place
PLURAL = {s: s + ("es" if s == "cross" else "s") for s in SHAPES}
LEVELS = ("", "colour", "size", "size colour")  # what a phrase says beside the shape
WORDS = (
    *COUNT, "and", ",", *SIZES, *COLOURS, *SHAPES, *PLURAL.values(), "left", "right", "of",
    "above", "below", "on", *BACKGROUNDS, "background", "at", "in", "the", "top", "bottom",
    "centre",
)  # fmt: skip
SAID = (
    f"captions are [{'|'.join(COUNT)}] [{'|'.join(SIZES)}] [{'|'.join(COLOURS)}] "
    f"[{'|'.join(SHAPES)}], size and colour of all objects or of none; at most {len(COUNT)} "
    f"objects, joined by ',' and 'and', or two single ones by [{'|'.join(RELATIONS)}]; at the end "
    f"'on a [{'|'.join(BACKGROUNDS)}] background', or of one object [{'|'.join(PLACES)}]"
)
KIND_NAMES = ("single", "colours", "two", "counting", "position", "attribution")


@dataclass(frozen=True)
class Thing:
    """One object as seen: what captions speak of.

    Attributes:
        shape: One of SHAPES.
        colour: One of COLOURS.
        size: One of SIZES.
        x: Pixels right of the middle.
        y: Pixels below the middle.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Seen:
    """What there is in a picture: its objects and its background."""

    things: tuple[Thing, ...]
    background: str


@dataclass(frozen=True)
class Phrase:
    """Some equal objects: how many, and what is said of them (None: nothing)."""

    count: int
    shape: str
    colour: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        number = next(w for w, n in COUNT.items() if n == self.count)
        shape = self.shape if self.count == 1 else PLURAL[self.shape]
        return " ".join(w for w in (number, self.size, self.colour, shape) if w)

    def fits(self, thing: Thing) -> bool:
        """Whether an object is one of these."""
        return (
            thing.shape == self.shape
            and self.colour in {None, thing.colour}
            and self.size in {None, thing.size}
        )


@dataclass(frozen=True)
class Caption:
    """What a caption says.

    Attributes:
        phrases: Its objects, in order.
        relation: Of the first to the second, or None.
        background: Named background, or None.
        place: Named place of the only object, or None.
    """

    phrases: tuple[Phrase, ...]
    relation: str | None = None
    background: str | None = None
    place: str | None = None

    def __str__(self) -> str:
        first = [str(p) for p in self.phrases]
        if self.relation:
            body = f"{first[0]} {self.relation} {first[1]}"
        else:
            body = " and ".join(x for x in (" , ".join(first[:-1]), first[-1]) if x)
        background = self.background and f"on a {self.background} background"
        return " ".join(w for w in (body, background, self.place) if w)

    @property
    def count(self) -> int:
        """Objects it speaks of."""
        return sum(p.count for p in self.phrases)

    @property
    def kind(self) -> str:
        """Which of KIND_NAMES it belongs to."""
        if self.relation:
            return "position"
        if len(self.phrases) == 1:
            if self.count > 1:
                return "counting"
            return "colours" if self.phrases[0].colour else "single"
        if any(p.count > 1 for p in self.phrases):
            return "counting"
        return "attribution" if self.phrases[0].colour else "two"


_PHRASE = (
    rf"(?P<count>{'|'.join(COUNT)})(?: (?P<size>{'|'.join(SIZES)}))?"
    rf"(?: (?P<colour>{'|'.join(COLOURS)}))?"
    rf" (?P<shape>{'|'.join(sorted((*SHAPES, *PLURAL.values()), key=len, reverse=True))})"
)
_SINGULAR = {v: k for k, v in PLURAL.items()}
_SUFFIX = re.compile(
    rf"(?P<body>.*?)(?: on a (?P<background>{'|'.join(BACKGROUNDS)}) background)?"
    rf"(?: (?P<place>{'|'.join(PLACES)}))?"
)


def parse(text: str) -> Caption:
    """What a caption says.

    Raises:
        ValueError: for an empty caption, a word the grammar lacks, or a sentence it cannot make.
    """
    words = text.replace(",", " , ").split()
    if not words:
        raise ValueError("expected a caption such as 'a red circle', got an empty one")
    unknown = [w for w in words if w not in WORDS]
    if unknown:
        raise ValueError(f"expected words of {' '.join(WORDS)}; got {unknown} in {text!r}")
    match = _SUFFIX.fullmatch(" ".join(words))
    assert match is not None  # noqa: S101 - every part is optional
    body = match["body"]
    relation = next((r for r in RELATIONS if f" {r} " in body), None)
    if relation:
        parts = body.split(f" {relation} ")
    else:
        parts = [q for p in body.split(" and ") for q in p.split(" , ")]
    try:
        caption = Caption(
            tuple(map(_phrase, parts)), relation, match["background"], match["place"]
        )
    except ValueError as error:
        raise ValueError(_refusal(text)) from error
    if str(caption) != " ".join(words):
        raise ValueError(_refusal(text))
    if broken := [rule for rule, holds in RULES.items() if not holds(caption)]:
        raise ValueError(_refusal(text, broken[0]))
    return caption


def _refusal(text: str, rule: str = "") -> str:
    """What is expected of a caption, and which rule it breaks where that is known."""
    why = f": expected {rule}" if rule else ""
    return f"expected a caption such as 'a red circle', got {text!r}{why}; {SAID}"


def _phrase(text: str) -> Phrase:
    match = re.fullmatch(_PHRASE, text)
    if match is None:
        raise ValueError(text)
    count, shape = COUNT[match["count"]], match["shape"]
    if (count > 1) != (shape in _SINGULAR):
        raise ValueError(text)
    return Phrase(count, _SINGULAR.get(shape, shape), match["colour"], match["size"])


def _alike(caption: Caption) -> bool:
    return len({(p.colour is None, p.size is None) for p in caption.phrases}) == 1


RULES: dict[str, Callable[[Caption], bool]] = {  # what a caption keeps, as refusals say it
    "size and colour of all objects or of none": _alike,
    "each kind of object once": lambda c: len(set(c.phrases)) == len(c.phrases),
    f"at most {len(COUNT)} objects": lambda c: c.count <= len(COUNT),
    "one object on each side of its relation": lambda c: (
        c.relation is None or [p.count for p in c.phrases] == [1, 1]
    ),
    "a single object for its place": lambda c: c.place is None or c.count == 1,
    f"fewer than {len(COUNT)} kinds of objects to tell sizes of": lambda c: (  # too long
        len(c.phrases) < len(COUNT) or c.phrases[0].size is None
    ),
}


def relation(a: Thing, b: Thing) -> str | None:
    """How a lies to b, or None where no direction is clear."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) >= CLEAR * abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) >= CLEAR * abs(dx):
        return "above" if dy > 0 else "below"
    return None


def place(a: Thing) -> str | None:
    """Where an object lies in the picture, or None where that is not clear."""
    if max(abs(a.x), abs(a.y)) <= NEAR:
        return "in the centre"
    if max(abs(a.x), abs(a.y)) < FAR:
        return None
    if abs(a.x) >= CLEAR * abs(a.y):
        return "on the left" if a.x < 0 else "on the right"
    if abs(a.y) >= CLEAR * abs(a.x):
        return "at the top" if a.y < 0 else "at the bottom"
    return None


def parts(caption: Caption, seen: Seen) -> dict[str, bool]:
    """Which parts of a caption hold: count, objects, and whatever else it speaks of.

    Objects hold if each can be matched to a phrase of its own; a relation or place then holds if
    it does so for a matching.
    """
    number = len(seen.things) == caption.count
    wanted = [p for p in caption.phrases for _ in range(p.count)]
    matches = [
        order
        for order in permutations(seen.things, len(wanted))
        if all(p.fits(t) for p, t in zip(wanted, order, strict=True))
    ]
    out = {"count": number, "objects": bool(matches)}
    if caption.relation:
        out["relation"] = any(relation(m[0], m[1]) == caption.relation for m in matches)
    if caption.place:
        out["place"] = any(place(m[0]) == caption.place for m in matches)
    if caption.background:
        out["background"] = seen.background == caption.background
    return out


def holds(caption: Caption, seen: Seen) -> bool:
    """Whether all of a caption is true of what is seen."""
    return all(parts(caption, seen).values())


def seen(scenes: Scenes) -> list[Seen]:
    """What there truly is in every scene."""
    colours, sizes, grounds = list(COLOURS), list(SIZES), list(BACKGROUNDS)
    columns = [getattr(scenes, k).tolist() for k in ("shape", "colour", "size", "x", "y")]
    rows = zip(scenes.n.tolist(), scenes.ground.tolist(), *columns, strict=True)
    return [
        Seen(
            tuple(
                Thing(SHAPES[s], colours[c], sizes[z], x, y)
                for s, c, z, x, y in list(zip(*objects, strict=True))[:n]
            ),
            grounds[ground],
        )
        for n, ground, *objects in rows
    ]


def told(scene: Seen) -> dict[str, float]:
    """Every caption of a scene with its probability p(c | scene)."""
    out: dict[str, float] = {}
    for body, p in _bodies(scene.things):
        for suffix, q in _suffixes(scene):
            text = str(Caption(body.phrases, body.relation, **suffix))
            out[text] = out.get(text, 0.0) + p * q
    return out


def _bodies(things: Sequence[Thing]) -> Iterator[tuple[Caption, float]]:
    levels = []
    for level in LEVELS:
        said = [
            Phrase(
                1,
                t.shape,
                t.colour if "colour" in level else None,
                t.size if "size" in level else None,
            )
            for t in things
        ]
        distinct = list(dict.fromkeys(said))
        if len(distinct) < len(COUNT) or "size" not in level:  # three sizes make a long sentence
            levels.append((said, distinct))
    for said, distinct in levels:
        share = 1 / len(levels)
        grouped = [Phrase(said.count(p), p.shape, p.colour, p.size) for p in distinct]
        related = relation(*things) if len(things) == len(distinct) == 2 else None  # noqa: PLR2004
        if related:
            share /= 2
            a, b = grouped
            yield Caption((a, b), related), share / 2
            yield Caption((b, a), OPPOSITE[related]), share / 2
        orders = list(permutations(grouped))
        for order in orders:
            yield Caption(order), share / len(orders)


def _suffixes(scene: Seen) -> Iterator[tuple[dict[str, str], float]]:
    where = place(scene.things[0]) if len(scene.things) == 1 else None
    yield {}, 1 - ON - (AT if where else 0)
    yield {"background": scene.background}, ON
    if where:
        yield {"place": where}, AT


def possible(caption: Caption, shift: bool = False) -> bool:  # noqa: FBT001, FBT002
    """Whether the splits other than `shift` can show it (with shift: only `shift` can)."""
    colours = list(COLOURS)
    allowed = {(colours[c], SHAPES[s]) for c, s in (KINDS if shift else SEEN)}
    seen_ones = {(colours[c], SHAPES[s]) for c, s in SEEN}
    named = {(p.colour, p.shape) for p in caption.phrases if p.colour}
    return named <= allowed and (not shift or not named <= seen_ones)


def admitted(text: str) -> Caption:
    """What a caption says, of which the data hold scenes.

    Raises:
        ValueError: for a caption that grammar or data cannot say.
    """
    caption = parse(text)
    if not possible(caption):
        held = ", ".join(f"{colour} {shape}" for colour, shape in HELD_OUT)
        raise ValueError(
            f"expected a caption of what the data hold, got {text!r}; they hold any "
            f"[{'|'.join(COLOURS)}] [{'|'.join(SHAPES)}] but {held}"
        )
    return caption
