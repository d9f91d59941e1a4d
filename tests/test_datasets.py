"""Published layouts in miniature: what is read of them, and how each kind of damage is refused."""

import http.server
import json
import re
import sys
import threading
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bench import datasets
from bench import images as pictures_of
from bench.cli import cli
from bench.datasets import fetching, geneval, hub, pictures
from bench.datasets.files import SUMS, sha256
from bench.datasets.ranked import Ranked, pairs
from bench.images import read
from bench.parts import world_part
from bench.resolve import UnknownName
from bench.worlds import WORLDS, _ask
from stitchvm.evaluation import Preferences, Ratings, Retrieval

SIDE = 8
COMMIT = "a" * 40


def draw(path, colour=(200, 100, 50), size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def shade(k):
    return (10 * k, 255 - 10 * k, 128)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")


def split(k, texts, which="test", **more):
    said = [{"raw": text, "tokens": text.split()} for text in texts]
    return {"filename": f"{k}.jpg", "split": which, "sentences": said, "imgid": k} | more


TEXTS = [["a cat", "one cat "], ["a dog", "an animal"], ["a bird", "an  animal"]]


def coco(root):
    images = [split(k, texts, filepath="val2014") for k, texts in enumerate(TEXTS)]
    images.insert(1, split(9, ["not tested"], "train", filepath="train2014"))
    write(root / "dataset_coco.json", {"images": images, "dataset": "coco"})
    for k in range(3):
        draw(root / "val2014" / f"{k}.jpg", shade(k))


def coco_2017(root):
    photos = [{"id": 7 + k, "file_name": f"{k}.jpg", "height": 8} for k in range(3)]
    said = [
        {"image_id": 7 + k, "id": 10 * k + n, "caption": text}
        for n in range(2)
        for k, text in enumerate(texts[n] for texts in TEXTS)
    ]
    write(root / "annotations" / "captions_val2017.json", {"images": photos, "annotations": said})
    for k in range(3):
        draw(root / "val2017" / f"{k}.jpg", shade(k))


def flickr(root, name, text):
    write(root / name, text)
    for k in range(3):
        draw(root / "flickr30k-images" / f"{k}.jpg", shade(k))


def flickr_lines(form, head=""):
    lines = [form.format(k=k, n=n, text=t) for k, ts in enumerate(TEXTS) for n, t in enumerate(ts)]
    return "\n".join([*filter(None, [head]), *lines])


LAYOUTS = {
    "karpathy coco": ("mscoco", coco),
    "coco 2017": ("mscoco", coco_2017),
    "karpathy flickr": (
        "flickr30k",
        partial(
            flickr,
            name="dataset_flickr30k.json",
            text=json.dumps({"images": [split(k, texts) for k, texts in enumerate(TEXTS)]}),
        ),
    ),
    "tokens": (
        "flickr30k",
        partial(flickr, name="results_20130124.token", text=flickr_lines("{k}.jpg#{n}\t{text}")),
    ),
    "bars": (
        "flickr30k",
        partial(
            flickr,
            name="results.csv",
            text=flickr_lines("{k}.jpg| {n}| {text}", "image_name| comment_number| comment"),
        ),
    ),
    "commas": (
        "flickr30k",
        partial(flickr, name="captions.txt", text=flickr_lines("{k}.jpg,{text}", "image,caption")),
    ),
}


class Looks:
    """A reward by a table: how well each shade, known by its red, fits a text."""

    def __init__(self, fits):
        self.fits = fits

    def scores(self, e, texts):
        shades = ((e[:, 0] + 1) * 12.75).round().long().tolist()
        return torch.tensor([[self.fits(k, text) for text in texts] for k in shades])

    def score(self, e, c):
        return self.scores(e, c).diagonal()


def seen(evaluation):
    """All images' mean colours, (B, 3): what `Looks` embeds."""
    batches = list(evaluation.images())
    assert all(x.shape[1:] == (3, SIDE, SIDE) for x in batches)
    return torch.cat(batches).mean((2, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_captions_of_every_layout_are_true_of_their_images(tmp_path, layout):
    name, make = LAYOUTS[layout]
    make(tmp_path)
    found = datasets.evaluation(name, tmp_path, SIDE)
    assert isinstance(found, Retrieval)
    assert found.texts == ["a cat", "one cat", "a dog", "an animal", "a bird"]
    assert found.true.tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    e = seen(found)
    torch.testing.assert_close(e[:, 0], torch.tensor([0.0, 10, 20]) / 127.5 - 1, atol=0.02, rtol=0)
    nouns = ["cat", "dog", "bird"]
    marks = found.marks(Looks(lambda k, text: float(nouns[k] in text)), e)
    assert marks["image_to_text"].all()
    assert marks["text_to_image"].tolist() == [True, True, True, False, True]  # the tie goes to 0
    few = datasets.evaluation(name, tmp_path, SIDE, items=1)
    assert few.texts == ["a cat", "one cat"]
    assert seen(few).shape == (1, 3)


def test_captions_keep_what_only_looks_like_the_end_of_a_line(tmp_path):
    odd = "a\x85cat\u2028 here"
    flickr(tmp_path, "results_20130124.token", f"0.jpg#0\t{odd}\r\n1.jpg#0\ta dog\r\n\r\n")
    assert datasets.evaluation("flickr30k", tmp_path, SIDE).texts == ["a cat here", "a dog"]
    (tmp_path / "results_20130124.token").unlink()
    write(tmp_path / "captions.txt", f'image,caption\r\n0.jpg,"{odd}"\r\n1.jpg,"a\r\ndog"\r\n')
    assert datasets.evaluation("flickr30k", tmp_path, SIDE).texts == ["a cat here", "a dog"]


def test_images_are_decoded_when_they_are_asked_for(tmp_path, monkeypatch):
    coco(tmp_path)
    monkeypatch.setattr(pictures, "AT_ONCE", 1)
    read, opened = pictures.read, []
    monkeypatch.setattr(
        pictures, "read", lambda path, side: opened.append(path) or read(path, side)
    )
    found = datasets.evaluation("mscoco", tmp_path, SIDE)
    assert opened == []
    batches = found.images()
    next(batches)
    assert [path.name for path in opened] == ["0.jpg"]
    next(batches)
    assert len(opened) == 2


def test_the_middle_of_a_picture_is_cut_out_and_resized(tmp_path):
    wide = np.zeros((4, 16, 3), dtype=np.uint8)
    wide[:, 3:13] = 255  # the middle, and what bicubic weights reach beyond it
    wide[0, 6] = 0
    Image.fromarray(wide).save(tmp_path / "wide.png")
    x = torch.ones(3, 4, 4)
    x[:, 0, 0] = -1
    assert torch.equal(read(tmp_path / "wide.png", (4, 4)), x)
    assert torch.equal(read(tmp_path / "wide.png", (2, 2))[:, 1, 1], torch.ones(3))
    tall = Image.fromarray(wide).rotate(90, expand=True)
    tall.save(tmp_path / "tall.png")
    assert torch.equal(read(tmp_path / "tall.png", (4, 4)), x.rot90(1, (1, 2)))


def ranking(prompt, ranks, name="rank", files="image_path"):
    return {"prompt": prompt, files: [f"{prompt}{k}.jpg" for k in range(len(ranks))], name: ranks}


def hpd(root, entries=None):
    entries = entries or [
        ranking("a", [2, 1, 3]),
        ranking("b", [1, 1, 2]),
        ranking("c", [[2, 1], [1, 2], [3, 1]], "raw_annotations")
        | {"image_path": ["c0.jpg", "c1.jpg"]},
    ]
    for entry in entries:
        if "raw_annotations" in entry:
            entry["raw_annotations"] = [
                {"rank": r, "user_hash": "x"} for r in entry["raw_annotations"]
            ]
        for k, name in enumerate(entry["image_path"]):
            draw(root / "test" / name, shade(k))
    write(root / "test.json", entries)


def named(found, pair):
    return [Path(found.images.files[row]).name for row in pair]


def test_hpdv2_prefers_the_lower_rank_and_leaves_ties_out(tmp_path):
    hpd(tmp_path)
    found = datasets.evaluation("hpdv2", tmp_path, SIDE)
    assert isinstance(found, Preferences)
    told = {(c, *named(found, pair)) for c, pair in zip(found.c, found.pairs, strict=True)}
    assert told == {
        ("a", "a1.jpg", "a0.jpg"),
        ("a", "a1.jpg", "a2.jpg"),
        ("a", "a0.jpg", "a2.jpg"),
        ("b", "b0.jpg", "b2.jpg"),
        ("b", "b1.jpg", "b2.jpg"),
        ("c", "c1.jpg", "c0.jpg"),  # means 2 and 4/3
    }
    marks = found.marks(Looks(lambda k, _: float(-k)), seen(found))["preference"]
    assert marks.sum() == 4  # all but a1 before a0, and c1 before c0
    assert found.c[:3] == ["a", "b", "c"]  # in rounds, so that few pairs are of many prompts
    two = datasets.evaluation("hpdv2", tmp_path, SIDE, items=2)
    assert two.c == ["a", "b"]
    assert len(two.images.files) == 4


def test_pairs_do_not_depend_on_what_else_is_listed():
    one = Ranked("a", ("0", "1", "2", "3"), (1, 2, 3, 4))
    two = Ranked("b", ("4", "5"), (2, 1))
    assert [pair for pair in pairs([one, two]) if pair.prompt == "a"] == pairs([one])
    assert len(pairs([one])) == 6
    assert pairs([two]) == [("b", "5", "4")]


def imagereward(root, prefix="data", entries=None):
    entries = entries or [
        ranking("a", [1, 2, 2, 5], "ranking", "generations") | {"id": "005658-0040"},
        ranking("b", [2, 1], "ranking", "generations") | {"id": "005658-0041"},
    ]
    for entry in entries:
        entry["generations"] = [f"part-0/images/{name}" for name in entry["generations"]]
        for k, name in enumerate(entry["generations"]):
            draw(root / prefix / "test_images" / name, shade(k))
    write(root / prefix / "test.json", entries)


@pytest.mark.parametrize("prefix", ["data", ""])
def test_imagereward_is_read_from_its_repository_or_beside_its_images(tmp_path, prefix):
    imagereward(tmp_path, prefix)
    found = datasets.evaluation("imagereward", tmp_path, SIDE)
    assert len(found.pairs) == 6  # of seven, one a tie
    right = found.marks(Looks(lambda k, _: float(-k)), seen(found))["preference"]
    assert right.sum() == 5


def ava(root, lines=None):
    counts = [[0] * 9 + [2], [1, 1] + [0] * 8, [0, 0, 0, 0, 3, 1, 0, 0, 0, 0]]
    if lines is None:
        lines = [
            f"{k + 1} {100 + k} {' '.join(map(str, c))} 1 22 1396" for k, c in enumerate(counts)
        ]
    write(root / "AVA.txt", "\n".join(lines) + "\n")
    for k in range(3):
        draw(root / "images" / f"{100 + k}.jpg", shade(k))


def test_ava_rates_by_the_mean_of_its_counts(tmp_path):
    ava(tmp_path)
    found = datasets.evaluation("ava", tmp_path, SIDE)
    assert isinstance(found, Ratings)
    rated = {p.name: float(r) for p, r in zip(found.images.files, found.rated, strict=True)}
    assert rated == {"100.jpg": 10.0, "101.jpg": 1.5, "102.jpg": 5.25}
    some = datasets.evaluation("ava", tmp_path, SIDE, items=2)
    assert some.images.files == found.images.files[:2]
    assert found.marks(Looks(lambda k, _: float(k)), seen(found))["srcc"].shape == (3, 2)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def damaged(root, make, harm):
    make(root)
    harm(root)


def without(*parts):
    return lambda root: root.joinpath(*parts).unlink()


def rewritten(name, change):
    def harm(root):
        data = json.loads((root / name).read_text())
        change(data)
        write(root / name, data)

    return harm


BROKEN = {
    "no folder": ("mscoco", lambda root: None, "expected one of dataset_coco.json"),
    "cut JSON": (
        "mscoco",
        lambda root: damaged(root, coco, lambda r: cut(r / "dataset_coco.json")),
        "is the file whole?",
    ),
    "no captions of the form": (
        "mscoco",
        lambda root: write(root / "dataset_coco.json", {"images": [{"filename": "0.jpg"}]}),
        "images.0.split: Field required",
    ),
    "nothing tested": (
        "mscoco",
        lambda root: write(root / "dataset_coco.json", {"images": [split(0, ["a"], "train")]}),
        "expected captioned images",
    ),
    "missing image": (
        "mscoco",
        lambda root: damaged(root, coco, without("val2014", "1.jpg")),
        "got no file .*1.jpg .1 are missing",
    ),
    "missing folder": (
        "mscoco",
        lambda root: damaged(root, coco, lambda r: (r / "val2014").rename(r / "elsewhere")),
        "expected the image val2014/0.jpg in one of",
    ),
    "an id twice": (
        "mscoco",
        lambda root: damaged(
            root,
            coco_2017,
            rewritten("annotations/captions_val2017.json", lambda d: d["images"][1].update(id=7)),
        ),
        "expected every image id once .* got 7 again",
    ),
    "a caption of no image": (
        "mscoco",
        lambda root: damaged(
            root,
            coco_2017,
            rewritten(
                "annotations/captions_val2017.json",
                lambda d: d["annotations"][0].update(image_id=404),
            ),
        ),
        "expected captions of listed images .* got one of 404",
    ),
    "an image without caption": (
        "mscoco",
        lambda root: damaged(
            root,
            coco_2017,
            rewritten("annotations/captions_val2017.json", lambda d: d["annotations"].clear()),
        ),
        "expected a caption of every image",
    ),
    "a file twice": (
        "flickr30k",
        lambda root: write(
            root / "dataset_flickr30k.json", {"images": [split(0, ["a"]), split(0, ["b"])]}
        ),
        "expected every image once .* got 0.jpg again",
    ),
    "a cut line of tokens": (
        "flickr30k",
        lambda root: write(root / "results_20130124.token", "0.jpg#0\ta cat\n1.jp"),
        "token:2: expected NAME.jpg#K<TAB>CAPTION, got '1.jp'",
    ),
    "no such column": (
        "flickr30k",
        lambda root: write(root / "captions.txt", "image,text\n0.jpg,a cat\n"),
        r"expected columns image, caption in .*captions.txt, got no \['caption'\]",
    ),
    "a cut row": (
        "flickr30k",
        lambda root: write(root / "captions.txt", "image,caption\n0.jpg,a cat\n1.jpg"),
        "captions.txt:3: expected 2 cells",
    ),
    "a cut quote": (
        "flickr30k",
        lambda root: write(root / "captions.txt", 'image,caption\n0.jpg,"a cat, and'),
        "expected CSV, got unexpected end of data",
    ),
    "too few ranks": (
        "hpdv2",
        lambda root: hpd(root, [ranking("a", [1, 2]) | {"rank": [1]}]),
        "entry 0: expected a rank of each of 2 images, got 1",
    ),
    "an image twice in a ranking": (
        "hpdv2",
        lambda root: hpd(root, [ranking("a", [1, 2]) | {"image_path": ["a0.jpg", "a0.jpg"]}]),
        "entry 0: expected every image once",
    ),
    "all ties": (
        "hpdv2",
        lambda root: hpd(root, [ranking("a", [1, 1])]),
        "expected pairs of which",
    ),
    "a missing generation": (
        "hpdv2",
        lambda root: damaged(root, hpd, without("test", "b2.jpg")),
        "got no file .*b2.jpg",
    ),
    "a ranking's id twice": (
        "imagereward",
        lambda root: damaged(
            root, imagereward, rewritten("data/test.json", lambda d: d[1].update(id="005658-0040"))
        ),
        "expected every id once .* got 005658-0040 again",
    ),
    "a cut line of AVA": (
        "ava",
        lambda root: ava(root, ["1 100 0 0 0"]),
        "AVA.txt:1: expected 15",
    ),
    "words for counts": (
        "ava",
        lambda root: ava(root, ["1 100 " + "x " * 10 + "1 2 3"]),
        "AVA.txt:1: expected 15 counts and ids",
    ),
    "a photograph twice": (
        "ava",
        lambda root: ava(root, [f"{k} 100 " + "1 " * 10 + "1 2 3" for k in range(2)]),
        "AVA.txt:2: expected every image once, got 100 again",
    ),
    "one nobody rated": (
        "ava",
        lambda root: ava(root, ["1 100 " + "0 " * 10 + "1 2 3"]),
        "expected a rating of 100, got none",
    ),
    "an empty list": ("ava", lambda root: write(root / "AVA.txt", ""), "expected rated images"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_what_is_broken_is_named(tmp_path, damage):
    name, make, message = BROKEN[damage]
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        datasets.evaluation(name, tmp_path, SIDE)


@pytest.mark.parametrize("keep", [0, 40, 60, -4])
def test_a_broken_picture_is_named_when_it_is_read(tmp_path, keep):
    coco(tmp_path)
    path = tmp_path / "val2014" / "1.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:keep] if keep >= 0 else path.read_bytes()[: -40 * 40])
    found = datasets.evaluation("mscoco", tmp_path, SIDE)
    with pytest.raises(ValueError, match="expected an image in .*1.jpg"):
        list(found.images())


def test_too_many_items_and_unknown_names_are_refused(tmp_path):
    coco(tmp_path)
    for items in (4, 0, -1):
        with pytest.raises(ValueError, match="expected between 1 and 3 images .* got"):
            datasets.evaluation("mscoco", tmp_path, SIDE, items=items)
    with pytest.raises(UnknownName, match="did you mean 'mscoco'"):
        datasets.evaluation("msco", tmp_path, SIDE)


# Prompts

DRAWBENCH = (
    "Prompts,Category\nA red car.,Colors\nTwo cats.,Counting\n"
    '"A plate, a cup.",Gary Marcus et al. \nThree dogs.,Counting\nA red car.,Counting\n'
)
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {
        "tag": "counting",
        "include": [{"class": "cow", "count": 2}],
        "exclude": [{"class": "cow", "count": 3}],
        "prompt": "two cows",
    },
    {"tag": "counting", "include": [{"class": "cup", "count": 3}], "prompt": "three cups"},
]


def lines(entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.fixture
def drawbench(tmp_path):
    write(tmp_path / "drawbench.csv", DRAWBENCH)
    return str(tmp_path / "drawbench.csv")


@pytest.fixture
def metadata(tmp_path):
    write(tmp_path / "evaluation_metadata.jsonl", lines(GENEVAL))
    return tmp_path / "evaluation_metadata.jsonl"


def asked(prompts):
    """The prompts of a world whose suite names them so, and what its cells say of them."""
    part = world_part({"build": "sd35-medium", "prompts": prompts}, WORLDS)
    world = WORLDS["sd35-medium"]()
    _ask(world, part.parts["prompts"])
    return world.prompts, part


def test_a_suite_names_a_benchmark_for_its_prompts(drawbench, metadata):
    found, part = asked({"build": "drawbench", "path": drawbench})
    assert found == ("A red car.", "Two cats.", "A plate, a cup.", "Three dogs.")
    assert part.parts["prompts"].settings == {"path": drawbench, "kinds": (), "per_kind": None}
    found, _ = asked({"build": "drawbench", "path": drawbench, "per_kind": 1})
    assert found == ("A red car.", "Two cats.", "A plate, a cup.")
    kinds = ["Gary Marcus et al.", "Colors"]
    found, _ = asked({"build": "drawbench", "path": drawbench, "kinds": kinds})
    assert found == ("A red car.", "A plate, a cup.")
    found, _ = asked({"build": "geneval", "path": str(metadata), "kinds": ["counting"]})
    assert found == ("two cows", "three cups")


def test_prompts_that_cannot_be_read_are_refused(tmp_path, drawbench, metadata):
    with pytest.raises(ValueError, match="expected a setting 'path', got none"):
        asked("drawbench")
    with pytest.raises(UnknownName, match="unknown setting of prompts"):
        asked({"build": "geneval", "path": str(metadata), "kind": ["counting"]})
    refused = {
        "expected kinds among single_object, counting, got count": {"kinds": ["count"]},
        "expected per_kind of at least 1, got 0": {"per_kind": 0},
        "expected a file .*none.jsonl, found none": {"path": str(tmp_path / "none.jsonl")},
    }
    for message, settings in refused.items():
        with pytest.raises(ValueError, match=message):
            asked({"build": "geneval", "path": str(metadata)} | settings)
    write(Path(drawbench), "Prompt,Category\nA red car.,Colors\n")
    with pytest.raises(ValueError, match=r"got no \['Prompts'\]"):
        asked({"build": "drawbench", "path": drawbench})
    write(Path(drawbench), "Prompts,Category\n,Colors\n")
    with pytest.raises(ValueError, match="expected a prompt and its category"):
        asked({"build": "drawbench", "path": drawbench})
    cut(metadata)
    with pytest.raises(ValueError, match="metadata.jsonl:3: expected JSON"):
        geneval.metadata(metadata)
    write(metadata, lines([*GENEVAL, GENEVAL[0]]))
    with pytest.raises(ValueError, match="expected every prompt once .* got 'a bench' again"):
        geneval.metadata(metadata)


def test_metadata_is_kept_as_geneval_says_it(metadata):
    assert list(geneval.metadata(metadata).values()) == GENEVAL


# Fetching


def get(*arguments):
    return CliRunner().invoke(cli, ["data", "get", *map(str, arguments)])


def holds(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*")} if folder.exists() else {}


def test_the_first_fetch_says_the_digest_that_holds_from_then_on(tmp_path, drawbench):
    to = tmp_path / "data" / "drawbench"
    result = get("drawbench", "--from", drawbench, "--to", to)
    assert result.exit_code == 0, result.output
    assert "as first fetched" in result.output
    assert (to / "drawbench.csv").read_text() == DRAWBENCH
    assert json.loads((to / SUMS).read_text()) == {"drawbench.csv": sha256(DRAWBENCH.encode())}
    assert asked({"build": "drawbench", "path": str(to / "drawbench.csv")})[0]
    before = holds(to)
    write(Path(drawbench), DRAWBENCH + "Another.,Colors\n")
    result = get("drawbench", "--from", drawbench, "--to", to)
    assert result.exit_code == 2
    assert "it is not whole, or another version" in result.output
    assert holds(to) == before
    (to / "drawbench.csv").write_text(DRAWBENCH + "Changed.,Colors\n")
    with pytest.raises(ValueError, match="expected .* as it was fetched, with sha256"):
        asked({"build": "drawbench", "path": str(to / "drawbench.csv")})
    write(Path(drawbench), DRAWBENCH)
    assert get("drawbench", "--from", drawbench, "--to", to).exit_code == 0
    assert holds(to) == before


def test_a_pinned_digest_refuses_every_other_file(tmp_path, metadata):
    result = get("geneval", "--from", metadata, "--to", tmp_path / "to")
    assert result.exit_code == 2
    assert "expected sha256 5c48e0813e81" in result.output
    assert not (tmp_path / "to").exists()


def test_half_a_file_is_refused_before_anything_is_written(tmp_path):
    hpd(tmp_path / "from")
    cut(tmp_path / "from" / "test.json")
    result = get("hpdv2", "--from", tmp_path / "from" / "test.json", "--to", tmp_path / "to")
    assert result.exit_code == 2
    assert "is the file whole?" in result.output
    assert str(tmp_path / "from" / "test.json") in re.sub(r"\s", "", result.output)
    assert not (tmp_path / "to").exists()


def test_what_is_no_list_or_has_no_address_is_refused(tmp_path):
    assert "did you mean 'geneval'" in get("genevel", "--to", tmp_path).output
    assert "expected --from PATH: ava must be had from" in get("ava", "--to", tmp_path).output
    gone = get("ava", "--from", tmp_path / "none", "--to", tmp_path)
    assert gone.exit_code == 2
    assert "found none" in gone.output
    (tmp_path / "file").write_text("")
    ava(tmp_path / "from")
    full = get("ava", "--from", tmp_path / "from" / "AVA.txt", "--to", tmp_path / "file")
    assert full.exit_code == 2
    assert "expected a folder to write to" in full.output
    bad = get("hpdv2", "--from", "hub:a/b@main", "--to", tmp_path)
    assert "expected hub:OWNER/NAME@REVISION/FILE" in bad.output
    shown = CliRunner().invoke(cli, ["data", "ls"]).output
    assert all(name in shown for name in fetching.PUBLISHED)


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: what it has, or with the code of a refusal."""

    FILE = DRAWBENCH.encode()
    REFUSALS = {
        "gated/set": (403, "GatedRepo"),
        "private/set": (401, "RepoNotFound"),
        "good/set/resolve/gone": (404, "RevisionNotFound"),
        "good/set/resolve/main/none.csv": (404, "EntryNotFound"),
    }

    def do_HEAD(self):  # noqa: N802 - theirs
        for place, (status, code) in self.REFUSALS.items():
            if place in self.path:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0123456789"')
        self.send_header("Content-Length", str(len(self.FILE)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.FILE[: 40 if "half/set" in self.path else None])

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants, file_download  # noqa: PLC0415

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # before it tries again
    download = partial(
        file_download.hf_hub_download, endpoint=address, cache_dir=tmp_path / "cache", token=False
    )
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    yield address
    server.shutdown()
    server.server_close()


REFUSED = {
    "hub:gated/set@main/x.csv": "its terms must be accepted: do so on https://huggingface.co/datasets/gated/set",
    "hub:private/set@main/x.csv": "there is none of that name, or it is private",
    "hub:good/set@gone/x.csv": "it has no revision 'gone'",
    "hub:good/set@main/none.csv": "revision 'main' has no such file",
    "hub:half/set@main/x.csv": "of the hub, got none: the connection broke off: try again",
}


def test_a_file_of_the_hub_is_fetched(tmp_path, served):
    result = get("drawbench", "--from", "hub:good/set@main/a sheet.csv", "--to", tmp_path / "to")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "to" / "drawbench.csv").read_text() == DRAWBENCH


@pytest.mark.parametrize("address", REFUSED)
def test_the_hub_s_refusals_say_what_to_do(tmp_path, served, address):
    with pytest.raises(ValueError, match=re.escape(REFUSED[address])):
        fetching.fetch("drawbench", tmp_path / "to", address)
    assert not (tmp_path / "to").exists()


def test_without_a_network_it_says_how_to_go_on(tmp_path, served, monkeypatch):
    from huggingface_hub import constants  # noqa: PLC0415

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="out of reach, or offline .* by their path"):
        fetching.fetch("drawbench", tmp_path / "to", "hub:good/set@main/x.csv")
    address = f"{served}/plain".replace("http:", "https:")  # speaks no TLS
    with pytest.raises(ValueError, match="expected https://127.* to answer, .* --from PATH"):
        fetching.fetch("drawbench", tmp_path / "to", address)


def test_a_download_that_breaks_off_is_refused(served):
    assert fetching._downloaded(f"{served}/good/set/x") == Hub.FILE
    with pytest.raises(ValueError, match="IncompleteRead|to answer, got"):
        fetching._downloaded(f"{served}/half/set/x")
    with pytest.raises(ValueError, match="expected a file at .*404"):
        fetching._downloaded(f"{served}/good/set/resolve/gone")


# Images to learn from


def test_images_come_from_a_folder(tmp_path):
    for k in range(25):
        draw(tmp_path / f"{k}.png", shade(k))
    shown = list(datasets.images(str(tmp_path), SIDE, 20, "train"))
    assert torch.cat([one.x_0 for one in shown]).shape == (20, 3, SIDE, SIDE)
    with pytest.raises(FileNotFoundError, match="no folder"):
        datasets.images(str(tmp_path / "none"), SIDE, 1, "train")


class Rows:
    """A streamed data set of 80 pictures, one of which is broken."""

    def __init__(self, broken=(), column="image"):
        self.broken, self.column, self.read = broken, column, 0

    def decode(self, enable):
        assert enable is False
        for k in range(80):
            self.read += 1
            yield {self.column: k, "label": 0}

    def picture(self, k):
        if k in self.broken:
            raise OSError("image file is truncated")
        return Image.new("L", (12, 8), 3 * k)


@pytest.fixture
def streamed(monkeypatch):
    def install(rows):
        asked_for = []

        def load_dataset(name, **settings):
            asked_for.append((name, settings))
            return rows

        image = types.SimpleNamespace(decode_example=rows.picture)
        package = types.SimpleNamespace(load_dataset=load_dataset, Image=lambda: image)
        monkeypatch.setitem(sys.modules, "datasets", package)
        return asked_for

    return install


def of_rows(split, count, address=f"hub:some/set@{COMMIT}"):
    shown = list(datasets.images(address, SIDE, count, split))
    assert [len(one.c) for one in shown] == [len(one.x_0) for one in shown]
    return ((torch.cat([one.x_0 for one in shown])[:, 0, 0, 0] + 1) * 42.5).round().int().tolist()


def test_images_stream_from_the_hub_at_a_commit(streamed, monkeypatch):
    monkeypatch.setattr(pictures_of, "PIXELS", 4 * SIDE**2)
    rows = Rows()
    asked_for = streamed(rows)
    assert of_rows("train", 10) == list(range(10))
    assert rows.read < 20  # no more than it needs
    assert asked_for == [("some/set", {"revision": COMMIT, "split": "train", "streaming": True})]
    held = of_rows("held", 3)
    assert sorted([*of_rows("train", 77, f"hub:some/set@{COMMIT}:test"), *held]) == list(range(80))
    assert asked_for[-1][1]["split"] == "test"
    with pytest.raises(
        ValueError, match="expected 80 images for 'train' in hub:some/set.*, got 77"
    ):
        of_rows("train", 80)


def test_what_the_hub_cannot_give_is_refused(streamed):
    streamed(Rows(broken=[2]))
    with pytest.raises(ValueError, match="expected an image in row 2 of hub:some/set"):
        of_rows("train", 10)
    streamed(Rows(column="picture"))
    with pytest.raises(ValueError, match="expected a column 'image' .* got label, picture"):
        of_rows("train", 10)
    for address in (
        "hub:some/set",
        "hub:some/set@main",
        f"hub:set@{COMMIT}",
        f"hub:a/b@{COMMIT}:",
    ):
        with pytest.raises(ValueError, match="expected hub:OWNER/NAME@COMMIT"):
            of_rows("train", 1, address)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install .stitchvm-bench.hub"):
        of_rows("train", 1)


def test_a_world_s_own_images_give_way_to_others(tmp_path, streamed):
    world = WORLDS["gaussian"](latent=(3, 4, 4), components=2, rank=2, prompts=2)
    assert hub.images_of(world, None).digest == world.digest
    for k in range(3):
        draw(tmp_path / f"{k}.png", shade(k))
    found = hub.images_of(world, str(tmp_path))
    assert next(found.shown("train", 1)).x_0.shape == (1, 3, 8, 8)
    streamed(Rows())
    streaming = hub.images_of(world, f"hub:some/set@{COMMIT}")
    assert next(streaming.shown("train", 2)).x_0.shape == (2, 3, 8, 8)
    other = hub.images_of(world, f"hub:some/set@{'b' * 40}")
    assert len({found.digest, streaming.digest, other.digest}) == 3
