"""HubStitched: saved, pushed and loaded again it is the same; all else is refused."""

import inspect
import json
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from bench.worlds import WORLDS
from stitchvm import saved
from stitchvm.identity import file_digest
from stitchvm.models import download, hub
from stitchvm.models.hub import HubStitched
from stitchvm.stitch import CONFIG, DESCRIBED, Stitched
from stitchvm.streams import Streams
from stitchvm.value import value_and_gradient

WEIGHTS = {f"{part}.safetensors" for part in ("linear", "residual", "tail", "null")}


@pytest.fixture(scope="module")
def world():
    return WORLDS["shapes"]()


@pytest.fixture(scope="module")
def reward(world):
    return world.reward("clip")


@pytest.fixture(scope="module")
def shipped(world):
    """A trained value model's folder; `stitched_free` has a gain as well."""
    return world.trained("clip")["stitched_free"]


@pytest.fixture
def load(world, reward):
    return lambda folder, **hub: HubStitched.from_pretrained(folder, world.backbone, reward, **hub)


@pytest.fixture
def folder(shipped, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(shipped, tmp_path / "model")


def same(world, one, other):
    """Bit-equal weights, values and gradients."""
    theirs = other.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in one.state_dict().items())
    z_t = Streams.of(0, rows=2).normal(torch.empty(2, *world.backbone.latent))
    inputs = z_t, torch.tensor([0.2, 0.8]), list(world.prompts[:2])
    found = [value_and_gradient(value, *inputs) for value in (one, other)]
    return all(map(torch.equal, *found))


def names(folder):
    return {path.name for path in folder.iterdir()}


# There and back


def test_saved_and_loaded_it_is_the_same(world, reward, shipped, load, tmp_path):
    value = load(shipped)
    value.save_pretrained(tmp_path / "saved")
    assert names(tmp_path / "saved") == {CONFIG, *WEIGHTS}
    again = load(str(tmp_path / "saved"))
    assert same(world, value, again)
    assert same(world, again, Stitched.from_pretrained(shipped, world.backbone, reward))
    assert not again.training
    about = [
        json.loads((at / CONFIG).read_text())["about"] for at in (shipped, tmp_path / "saved")
    ]
    assert about[0] == about[1] == again.about
    assert about[0]


def test_no_generator_is_saved(world, shipped, load, tmp_path):
    load(shipped).save_pretrained(tmp_path / "saved")
    generator = {file_digest(w.numpy().tobytes()) for w in world.backbone.state_dict().values()}
    for name in WEIGHTS - {"null.safetensors"}:
        for weight in load_file(tmp_path / "saved" / name).values():
            assert file_digest(weight.numpy().tobytes()) not in generator


class Hub:
    """What was pushed, as a hub keeps it."""

    def __init__(self, place):
        self.place, self.calls = place, []

    def __call__(self, token=None):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message, revision, create_pr):
        self.calls.append(("upload", repo_id, commit_message, revision, create_pr))
        shutil.copytree(folder_path, self.place)
        return "https://hub/commit"

    def snapshot_download(self, repo_id, *, allow_patterns, revision, **_settings):
        self.calls.append(("download", repo_id, revision))
        to = self.place.with_name("downloaded")
        to.mkdir()
        for name in filter_repo_objects(sorted(names(self.place)), allow_patterns=allow_patterns):
            shutil.copy(self.place / name, to / name)
        return str(to)


@pytest.fixture
def there(monkeypatch, tmp_path):
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", fake)
    monkeypatch.setattr(download, "snapshot_download", fake.snapshot_download)
    return fake


def test_the_stand_in_takes_what_the_hub_takes():
    real = {"snapshot_download": snapshot_download}
    real |= {name: getattr(HfApi, name) for name in ("create_repo", "upload_folder")}
    for name, function in real.items():
        mine = inspect.signature(getattr(Hub, name)).parameters.keys() - {"_settings"}
        assert mine - {"self"} <= inspect.signature(function).parameters.keys()


def test_pushed_and_loaded_it_is_the_same(world, shipped, load, there):
    value = load(shipped)
    said = value.push_to_hub("mine", private=True, token="secret", branch="v1")
    assert said == "https://hub/commit"
    assert names(there.place) == {CONFIG, "README.md", *WEIGHTS}
    (there.place / "pytorch_model.bin").write_bytes(b"not ours")
    again = load("me/mine", revision="v1")
    assert same(world, value, again)
    assert names(there.place.with_name("downloaded")) == {CONFIG, *WEIGHTS}
    assert there.calls == [
        ("token", "secret"),
        ("create", "mine", True, True),
        ("upload", "me/mine", "Upload a StitchVM", "v1", None),
        ("download", "me/mine", "v1"),
    ]


def test_the_card_says_what_it_is_and_whose_licences_hold(shipped, load, there):
    load(shipped).push_to_hub("mine")
    card = (there.place / "README.md").read_text()
    described = json.loads((there.place / CONFIG).read_text())
    for said in (
        "library_name: stitchvm-bench",
        "- stitchvm",
        f"first {described['i']} blocks",
        f"`{described['backbone']}`",
        f"`{described['reward']}`",
        "mean | data",
        "| its trunk sees | the null prompt |",
        "https://arxiv.org/abs/2605.19804",
        "FLUX.1-dev (non-commercial)",
        'HubStitched.from_pretrained("me/mine", backbone, reward)',
    ):
        assert said in card
    assert "{{" not in card


# Nothing half-written


def fail(*_args, **_settings):
    raise OSError("no space left")


def test_a_folder_is_there_whole_or_not_at_all(shipped, load, tmp_path, monkeypatch):
    value, place = load(shipped), tmp_path / "place"
    monkeypatch.setattr(saved, "file_digest", fail)
    with pytest.raises(OSError, match="no space left"):
        value.save_pretrained(place / "model")
    assert list(place.iterdir()) == []
    monkeypatch.undo()
    (place / "model").mkdir()
    with pytest.raises(ValueError, match="expected a new folder, got .*model, which exists"):
        value.save_pretrained(place / "model")
    assert list((place / "model").iterdir()) == []


def test_no_repository_is_made_for_what_cannot_be_saved(shipped, load, there, monkeypatch):
    value = load(shipped)
    monkeypatch.setattr(saved, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        value.push_to_hub("mine")
    assert [call[0] for call in there.calls] == ["token"]
    assert not there.place.exists()


# What is refused


def sign(folder, **changes):
    """Digests of what is there now, so that only what is inside can be wrong."""
    described = json.loads((folder / CONFIG).read_text())
    files = {
        path.name: file_digest(path.read_bytes())
        for path in folder.iterdir()
        if path.name != CONFIG
    }
    (folder / CONFIG).write_text(json.dumps({**described, "files": files, **changes}))


class Trap:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def trap(tmp_path):
    """A pickle, and a check that nobody has opened it."""
    mark = tmp_path / "opened"
    yield pickle.dumps(Trap(mark))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # it would have told


def test_a_pickle_is_refused_whatever_it_is_called(load, folder, tmp_path, trap):
    file = tmp_path / "model.pt"
    file.write_bytes(trap)
    with pytest.raises(ValueError, match=r"got the file .*model.pt: other files, such as pickles"):
        load(file)
    (folder / "tail.safetensors").write_bytes(trap)
    sign(folder)
    with pytest.raises(ValueError, match=r"expected safetensors in .*tail.safetensors, got some"):
        load(folder)
    (folder / "tail.safetensors").rename(folder / "tail.bin")
    sign(folder)
    with pytest.raises(ValueError, match=r"expected safetensors files in .*, got tail.bin"):
        load(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(ValueError, match=r"got tail.bin: pickles may run anything"):
        load(folder)


def test_files_elsewhere_are_not_read(load, folder):
    (folder / "tail.safetensors").rename(folder.parent / "tail.safetensors")
    digest = file_digest((folder.parent / "tail.safetensors").read_bytes())
    sign(folder, files={"../tail.safetensors": digest})
    with pytest.raises(ValueError, match=r"expected safetensors files in .*got \.\./tail"):
        load(folder)


@pytest.mark.parametrize("part", sorted(WEIGHTS))
def test_missing_files_and_weights_are_named(part, load, folder):
    tensors = load_file(folder / part)
    needed = [key for key in tensors if key != "gain"]  # without it, it is a model of norm=unit
    for key in needed[:2]:
        kept = {name: w for name, w in tensors.items() if name != key}
        save_file(kept, folder / part)
        sign(folder)
        said = "null prompt" if part == "null.safetensors" else re.escape(key)
        with pytest.raises(ValueError, match=said):
            load(folder)
    (folder / part).unlink()
    with pytest.raises(FileNotFoundError, match=f"expected .*{part}, got no such file"):
        load(folder)
    sign(folder)
    with pytest.raises(
        ValueError, match=f"expected linear, residual, .* got no {Path(part).stem}"
    ):
        load(folder)


def test_weights_that_it_does_not_have_are_named(load, folder):
    save_file(load_file(folder / "tail.safetensors") | {"more": torch.ones(1)},
              folder / "tail.safetensors")  # fmt: skip
    sign(folder)
    with pytest.raises(ValueError, match=r"expected the same weights in tail of .*more"):
        load(folder)


def test_changed_bytes_are_refused(load, folder):
    data = bytearray((folder / "tail.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "tail.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"expected .*tail.safetensors with digest .*, got"):
        load(folder)


@pytest.mark.parametrize("key", DESCRIBED)
def test_a_description_that_lacks_something_is_refused(key, load, folder):
    described = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in described.items() if k != key}))
    with pytest.raises(ValueError, match=f"expected i, j, .* in {folder}, got no {key}"):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 1}', "\x80"])
def test_a_description_that_is_none_is_refused(text, load, folder):
    (folder / CONFIG).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=f"expected digests of files in {folder / CONFIG}, got"):
        load(folder)


def test_another_generator_or_reward_is_refused(world, shipped, reward):
    with pytest.raises(ValueError, match="expected backbone "):
        HubStitched.from_pretrained(shipped, world.other("small"), reward)
    with pytest.raises(ValueError, match="expected reward "):
        HubStitched.from_pretrained(shipped, world.backbone, world.reward("hps"))


# A hub that does not give it


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GatedRepoError, "the model me/mine of the hub, got none: its terms must be accepted"),
        (RepositoryNotFoundError, "the model me/mine of the hub, got none: there is none of that"),
        (RevisionNotFoundError, "me/mine of the hub, got none: it has no revision 'v1'"),
    ],
)
def test_a_hub_that_refuses_is_named(kind, said, load, monkeypatch):
    def refuse(*_args, **_settings):
        raise kind("it says no", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(download, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=said):
        load("me/mine", revision="v1")


def test_a_hub_that_is_not_asked_has_nothing(load, tmp_path):
    said = "expected the model me/mine of the hub, got none: the hub is out of reach"
    with pytest.raises(ValueError, match=said):
        load("me/mine", cache_dir=tmp_path, local_files_only=True)
    assert not any(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="neither a folder nor a name such as OWNER/NAME"):
        load(tmp_path / "nowhere" / "at" / "all", local_files_only=True)
    with pytest.raises(FileNotFoundError, match=f"saved value model in {tmp_path}, got no stitch"):
        load(tmp_path)
