"""Images from a folder: what comes out, which are held out, and what is refused."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from bench.images import FolderImages, WorldImages, of_world
from bench.worlds.gaussian import GaussianWorld


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for k in range(40):
        where = tmp_path / ("more" if k % 2 else "") / f"{k:02}.png"
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(where)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def all_of(images, split, count):
    return torch.cat([shown.x_0 for shown in images.shown(split, count)])


def test_images_are_cut_from_the_middle_and_scaled(folder):
    images = FolderImages(folder, (16, 16))
    first = next(path for path in images.files if not images._held(path))
    numbers = np.array(Image.open(first)).astype(np.float32)[:, 4:20] / 127.5 - 1
    x = all_of(images, "train", 1)[0]
    torch.testing.assert_close(x, torch.from_numpy(numbers).permute(2, 0, 1), rtol=0, atol=1e-6)
    assert all_of(FolderImages(folder, (8, 8)), "train", 3).shape == (3, 3, 8, 8)
    assert all(c == "" for shown in images.shown("train", 3) for c in shown.c)


def test_the_split_depends_on_names_alone(folder):
    images = FolderImages(folder, (16, 16))
    held = {path for path in images.files if images._held(path)}
    assert 0 < len(held) < 15
    train = all_of(images, "train", 40 - len(held))
    other = all_of(images, "held", len(held))
    assert not any(torch.equal(x, y) for x in train for y in other)
    next(iter(held)).unlink()
    assert torch.equal(all_of(FolderImages(folder, (16, 16)), "train", len(train)), train)


def test_the_digest_is_of_names_and_contents(folder):
    digests = [FolderImages(folder, (16, 16)).digest for _ in range(2)]
    assert digests[0] == digests[1]
    assert FolderImages(folder, (8, 8)).digest != digests[0]
    (folder / "00.png").rename(folder / "zz.png")
    renamed = FolderImages(folder, (16, 16)).digest
    Image.new("RGB", (16, 16)).save(folder / "zz.png")
    assert len({digests[0], renamed, FolderImages(folder, (16, 16)).digest}) == 3


def test_what_is_no_folder_of_images_is_refused(folder):
    with pytest.raises(FileNotFoundError, match="expected a folder of images, got no folder"):
        FolderImages(folder / "nowhere", (16, 16))
    (folder / "empty").mkdir()
    expected = re.escape("expected at least one image (.png, .jpg, .jpeg, .webp) in")
    with pytest.raises(FileNotFoundError, match=expected):
        FolderImages(folder / "empty", (16, 16))
    images = FolderImages(folder, (16, 16))
    with pytest.raises(ValueError, match=r"expected 41 images for 'train' in .*, got 3\d"):
        list(images.shown("train", 41))
    torn = next(path for path in images.files if not images._held(path))
    torn.write_bytes(torn.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"expected an image in {re.escape(str(torn))}, got"):
        list(images.shown("train", 3))


def test_a_worlds_own_or_a_folders(folder):
    world = GaussianWorld(latent=(2, 4, 4), components=3, rank=2, prompts=4)
    own = of_world(world, None)
    assert isinstance(own, WorldImages)
    assert own.digest == world.digest
    assert torch.equal(all_of(own, "held", 5), next(world.images("held", 5)).x_0)
    assert of_world(world, folder).size == (8, 8)
