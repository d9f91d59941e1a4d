"""Worlds of published weights: tiny random models in the layouts, and places, of the real ones."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import errors
from PIL import Image
from test_datasets import ava, coco
from test_models_generators import flux_pipeline, sd3_pipeline, tiny_decoder
from test_models_open_clip import ARCHITECTURES, OpenClip
from test_models_rewards import stack, tiny, tokenizer
from transformers import CLIPImageProcessorPil

import bench.worlds.full.files as kept
from baselines.untrained import build as untrained
from bench import published
from bench.cli import cli
from bench.contract import backbone as contract
from bench.contract.checking import ROWS, check
from bench.plan import plan
from bench.predict import predicted
from bench.suite import load
from bench.worlds.full import BUILDS, stored
from bench.worlds.full.files import SUMS, Copies, download, files_of, write_sums
from bench.worlds.full.world import FullWorld
from stitchvm.backbone import NULL
from stitchvm.evaluation import Ratings, Retrieval
from stitchvm.identity import file_digest
from stitchvm.models import aesthetic, open_clip
from stitchvm.models.offload import waiting
from stitchvm.stitch import Stitched
from stitchvm.streams import Streams

WORDS = ["a red", "a blue red"]  # of both tokenizers' vocabulary
SIDE = 16
ARCHITECTURE = ARCHITECTURES["gelu"]


def save_reward(root, source):
    """A tiny model where, and as, a reward's real one is."""
    folder = root / source.repo
    folder.mkdir(parents=True, exist_ok=True)
    if source in {published.CLIP_336, published.CLIP_224}:
        words = tokenizer(eos="and")
        legacy = source is published.CLIP_336
        tiny(eos_token_id=2 if legacy else 9).save_pretrained(folder)
        if legacy:  # the real one is pickled, and its configuration from before eos was told
            safe = folder / "model.safetensors"
            torch.save(tiny().state_dict(), folder / "pytorch_model.bin")
            safe.unlink()
        words.save_pretrained(folder)
        CLIPImageProcessorPil().save_pretrained(folder)
    elif source is published.PICKSCORE:
        tiny(eos_token_id=9, act="gelu").save_pretrained(folder)
    elif source is published.AESTHETIC:
        layers, _ = stack((16, 8, 1), (0, 2))
        torch.save(layers, folder / published.AESTHETIC_FILE)
        described = folder / published.AESTHETIC_FILE
        described.with_suffix(".json").write_text(json.dumps({"sizes": [16, 8, 1]}))
    else:
        weights = OpenClip("gelu").state_dict()
        torch.save({"state_dict": weights}, folder / source.files[0])


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Copies of all models, tiny, with their digests."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    dual = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
    pipelines = {
        "sd35-medium": lambda: sd3_pipeline(None, patch_size=2, num_layers=3, **dual),
        "flux-dev": lambda: flux_pipeline(guidance=True),
    }
    for model, pipeline in pipelines.items():
        pipeline().to(torch.float32).save_pretrained(root / published.GENERATORS[model].repo)
    for decoder in (published.TAESD3, published.TAEF1):
        tiny_decoder().float().save_pretrained(root / decoder.repo)
    for source in {one for of in published.REWARDS.values() for one in of}:
        save_reward(root, source)
    for folder in {file.parent for file in root.glob("*/*/*")}:
        write_sums(folder)
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Heads of the tiny models, a cache of the test's own, and no way to a hub."""
    monkeypatch.setattr(stored, "ARCHITECTURES", dict.fromkeys(stored.ARCHITECTURES, ARCHITECTURE))
    monkeypatch.setenv("STITCHVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FullWorld, "prompts", tuple(WORDS))  # words that the tiny models know


@pytest.fixture(params=["sd35-medium", "flux-dev"])
def model(request):
    return request.param


def world(model, copies, **settings):
    given = {"side": SIDE, "precision": "float32"} | settings
    return BUILDS[model](weights=str(copies), **given)


def latents(world, rows=2):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(rows, *world.backbone.latent, generator=rng)


def test_the_generator_is_the_one_of_the_folder(model, copies):
    made = world(model, copies)
    loader = stored.flux if model == "flux-dev" else stored.sd3
    given = {"guidance": 3.5} if model == "flux-dev" else {}
    plain = loader.load(
        copies / published.GENERATORS[model].repo, latent=made.backbone.latent, **given
    )
    z, t = latents(made), torch.tensor(0.6)
    assert torch.equal(made.backbone.velocity(z, t, WORDS), plain.velocity(z, t, WORDS))
    assert made.backbone.latent == (4, 8, 8)


def test_a_generator_of_the_folder_keeps_the_contract(model, copies):
    backbone = world(model, copies).backbone.double()
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(ROWS, *backbone.latent, generator=rng, dtype=torch.float64)
    t = torch.linspace(0.2, 0.9, ROWS, dtype=torch.float64)
    c = [WORDS[k % 2] for k in range(ROWS)]
    case = contract.Case(backbone, z, z, t, c)
    checks = tuple(one for one in contract.CHECKS if one is not contract.gradient)
    assert [why for _, why in check(case, checks) if why is not None] == []


def test_published_blocks_can_wait_in_main_memory(model, copies):
    plain, other = (world(model, copies, fast=paths) for paths in ((), ("offload",)))
    z, t, c = latents(plain), torch.tensor(0.5), list(WORDS[:2])
    assert torch.equal(other.backbone.velocity(z, t, c), plain.backbone.velocity(z, t, c))
    features = [w.backbone.trunk(z, t, 2).features for w in (plain, other)]
    assert torch.equal(*features)
    own = [w for block in other.generator.blocks for w in block.state_dict()]
    assert len(waiting(other.backbone)) == len(own) > 0


def test_prompts_are_encoded_once_for_all_processes(model, copies, monkeypatch):
    made = world(model, copies)
    first = made.backbone.texts(["a blue red"], torch.zeros(()))
    loader = stored.flux if model == "flux-dev" else stored.sd3
    monkeypatch.setattr(loader, "read_texts", None)  # who reads the encoders again fails
    again = world(model, copies).backbone.texts
    for asked in ("a blue red", "a red", NULL):  # expected ones and the null prompt came with it
        again([asked], torch.zeros(()))
    assert torch.equal(again(["a blue red"], torch.zeros(())).tokens, first.tokens)
    assert list(again.encoders) == []
    with pytest.raises(TypeError):
        again(["red a"], torch.zeros(()))


def test_where_blocks_wait_encoders_run_as_well(model, copies):
    places = [
        stored.StoredParts(
            model, files_of(str(copies)), side=SIDE, dtype=torch.float32, device=device,
            expected=tuple,
        ).backbone("cpu").texts.place
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    assert places == [None, torch.device("cpu")]
    made = world(model, copies)
    texts = made.backbone.texts
    texts.place = torch.device("meta")  # asked for here, encoded there
    with pytest.raises(NotImplementedError, match="meta"):
        texts(["a blue red"], torch.zeros(()))


def test_embeddings_of_another_precision_are_others(copies):
    made = [world("sd35-medium", copies, precision=p) for p in ("float32", "bfloat16")]
    made = [w.backbone.texts(WORDS, torch.zeros(())).tokens for w in made]
    assert not torch.equal(*made)
    assert torch.allclose(*made, atol=0.1)


def test_rewards_are_those_of_the_files(copies):
    made = world("sd35-medium", copies)
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(2)) * 2 - 1
    found = {name: made.reward(name)(x, WORDS) for name in made.rewards}
    assert all(r.shape == (2,) and r.isfinite().all() for r in found.values())
    assert torch.equal(found["hps-v2.0"], found["hps-v2.1"])  # one tiny model is both
    file = copies / "xswu/HPSv2/HPS_v2.1_compressed.pt"
    words = tokenizer(eos="and")
    direct = stored.ClipReward(open_clip.load(file, ARCHITECTURE), words, stored.CLIP_PIXELS, 1.0)
    assert torch.equal(found["hps-v2.1"], direct(x, WORDS))
    pick = made.reward("pick")
    assert pick.scale == pytest.approx(float(tiny().logit_scale.detach().exp()))
    w, b = aesthetic.load_head(copies / published.AESTHETIC.repo / published.AESTHETIC_FILE)
    e = made.reward("aesthetic").features(x).embedding
    assert torch.allclose(found["aesthetic"], e @ w.float() + b.float(), atol=1e-5)


def test_a_stitchvm_joins_a_bfloat16_generator_to_a_float32_reward(model, copies):
    made = world(model, copies, precision="bfloat16")
    value = untrained(made, made.reward("clip"), i=2)
    assert isinstance(value, Stitched)
    assert value(latents(made), torch.tensor(0.4), WORDS).dtype == torch.float32


def test_a_distilled_decoder_shares_the_rest(copies):
    made = world("sd35-medium", copies)
    assert made.tiny.transformer is made.backbone.transformer
    assert made.tiny.decode(latents(made)).shape == (2, 3, SIDE, SIDE)


def test_nothing_is_read_to_plan(copies, monkeypatch):
    for name in ("backbone", "decoder", "reward"):
        monkeypatch.setattr(stored.StoredParts, name, None)
    digests = {world("sd35-medium", copies, side=side).digest for side in (16, 32)}
    digests.add(BUILDS["sd35-medium"](weights="hub").digest)
    digests.add(BUILDS["sd35-large"](weights="hub").digest)
    assert len(digests) == 4
    assert {digest.partition("-")[0] for digest in digests} == {"copies", "hub"}


def test_no_reward_is_read_to_plan_a_value_model(copies, monkeypatch, tmp_path):
    for name in ("backbone", "decoder", "reward"):
        monkeypatch.setattr(stored.StoredParts, name, None)
    where = {"build": "sd35-medium", "weights": str(copies), "models": str(tmp_path)}
    folder = tmp_path / "hps-v2.1" / "stitched" / "model"
    folder.mkdir(parents=True)

    def digest_of(config):
        (folder / "stitch.json").write_text(config)
        cells = plan(
            load("realised"),
            changes={"world": [where], "reward": ["hps-v2.1"]},
            only="estimator=StitchVM",
        )
        return [cell.spec.estimator.digest for cell in cells]

    assert digest_of("{}") == [file_digest(b"{}")[:16]]
    assert digest_of("{ }") != digest_of("{}")
    made = world("sd35-medium", copies, models=str(tmp_path))
    assert made.trained("hps-v2.1") == {"stitched": folder}
    assert made.trained("clip") == made.trained("../clip") == {}


# Pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """As many as a search wants, of which every tenth is held out."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k in range(2300):
        drawn = rng.integers(0, 255, (20, 18, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(folder / f"{k:04}.png", compress_level=0)
    return folder


def test_clean_latents_are_pictures(copies, pictures):
    made = world("sd35-medium", copies, pictures=str(pictures))
    z = made.draw([NULL] * 3, Streams([1, 2, 1]))
    assert torch.equal(z[0], z[2])
    assert not torch.equal(z[0], z[1])
    held = [made.backbone.encode(shown.x_0) for shown in made.images("held", 4)]
    known = torch.cat(held)
    assert any(torch.equal(z[0], one) for one in known) or len(made.folder.of("held")) > 4
    assert made.pictures(z).abs().max() <= 1
    with pytest.raises(ValueError, match="expected the null prompt, as of `pairing: mismatched`"):
        made.draw(["a red"], Streams([1]))


def invoked(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_a_value_model_is_made_and_judged_without_a_truth(copies, pictures, tmp_path):
    named = f"sd35-medium,weights={copies},side={SIDE},precision=float32,pictures={pictures}"
    models, store = tmp_path / "models", tmp_path / "store"
    few = ("--reward", "clip", "--out", models)
    assert "cheap" in invoked("stitch", "search", named, *few)
    small = ("--steps", 3, "--batch", 4, "--images", 20, "--rate", 1e-4)
    assert "stitched/model" in invoked("stitch", "train", named, *small, *few)
    listed = tmp_path / "prompts.txt"
    listed.write_text("\n".join(WORDS))
    where = f"{named},models={models},prompts={listed}"
    invoked(
        *("run", "realised", "--world", where, "--store", store),
        *("--set", "reward=clip", "--set", "prompts=2", "--set", "sigmas=0.5"),
        *("--set", "members=3", "--set", "calls=1", "--processes", 1, "--anyway"),
        *("--only", "estimator!=MC, 4 rollouts of 10 & estimator!=tweedie, tiny decoder"),
    )
    rows = [json.loads(f.read_text())["rows"][0] for f in store.glob("cells/*/*/result.json")]
    assert len(rows) == 4
    for row in rows:
        assert row["realises"] == "data"
        assert row["metrics"]["bias_realised"]
    table = invoked("table", store)
    assert re.search(r"StitchVM +\d", table)
    assert re.search(r"floor of the truth +unknown", table)
    invoked("report", store)
    page = " ".join((store / "report" / "index.html").read_text().split())
    assert "errors are those against realised rewards, whose spread" in page


def test_noise_does_not_stand_for_pictures(copies):
    made = world("sd35-medium", copies)
    for asked in (lambda: made.draw([NULL], Streams([1])), lambda: next(made.images("held", 1))):
        with refused("expected pictures=FOLDER with published weights of 'sd35-medium'"):
            asked()


def test_a_list_is_trained_on_and_encoded_at_once(copies, tmp_path):
    judged, others = WORDS[0], [WORDS[1], "a blue"]
    learned = tmp_path / "learned.txt"
    learned.write_text("\n".join([judged, *others, others[0]]))
    with refused("expected training=FILE, a list of prompts, with published weights"):
        world("sd35-medium", copies).training(2)
    made = world("sd35-medium", copies, training=str(learned))
    made.prompts = (judged,)
    assert made.training(2) == tuple(others[:2])
    texts = made.generator.texts
    texts([judged], torch.empty(()))
    assert all(texts._file(text).is_file() for text in others[:2])
    with refused(f"expected 9 prompts to train on in {learned}, got 2 beside those"):
        made.training(9)
    lessons = {made.lessons, world("sd35-medium", copies).lessons}
    learned.write_text(others[0])
    other = world("sd35-medium", copies, training=str(learned))
    assert len({*lessons, other.lessons}) == 3
    assert other.digest == world("sd35-medium", copies).digest  # it says nothing of latents
    with pytest.raises(FileNotFoundError, match="expected a list of prompts at nowhere.txt"):
        _ = world("sd35-medium", copies, training="nowhere.txt").lessons
    where = {"build": "sd35-medium", "training": str(learned)}
    ids = {}
    for suite in ("cost-nft", "cost-fk"):
        pair = [plan(load(suite), changes={"world": [of]}) for of in (where, "sd35-medium")]
        ids[suite] = len({cells[0].id for cells in pair})
    assert ids == {"cost-nft": 2, "cost-fk": 1}


def test_predictions_read_no_weights(copies, monkeypatch, tmp_path):
    for name in ("backbone", "decoder", "reward"):
        monkeypatch.setattr(stored.StoredParts, name, None)
    where = {"build": "sd35-medium", "weights": str(copies), "side": 32}
    cells = plan(load("cost-dps"), changes={"world": [where], "reward": ["hps-v2.1"]})
    steps = [cell for cell in cells if cell.coordinates["estimator"] == "DPS, stop-gradient"]
    (one,) = predicted(steps[:1])
    assert one.costs["guided"].flops > 0
    assert not (tmp_path / "cache").exists()


def test_what_a_world_is_depends_on_what_it_reads_alone(copies, tmp_path):
    moved = shutil.copytree(copies, tmp_path / "moved")
    pick, tiny_one = moved / published.PICKSCORE.repo, moved / published.TAESD3.repo
    before = world("sd35-medium", moved)
    assert before.digest == world("sd35-medium", copies).digest
    shutil.rmtree(pick)
    after = world("sd35-medium", moved)
    assert after.digest == before.digest
    assert after.identity("pick") != before.identity("clip")
    assert after.identity("clip") == world("sd35-medium", copies).identity("clip")
    (tiny_one / SUMS).write_text((tiny_one / SUMS).read_text().replace("a", "b"))
    assert world("sd35-medium", moved).digest != before.digest


def test_files_that_no_digest_lists_are_refused(copies, tmp_path):
    moved = shutil.copytree(copies, tmp_path / "moved")
    folder = moved / published.GENERATORS["sd35-medium"].repo
    kept = [line for line in (folder / SUMS).read_text().splitlines() if "safetensors" not in line]
    (folder / SUMS).write_text("\n".join(kept) + "\n")
    with refused("expected all files of"):
        Copies(moved).folder(published.GENERATORS["sd35-medium"])


@pytest.mark.slow
def test_of_random_weights_realised_rewards_say_nothing(tmp_path):
    asked = ("--set", "reward=aesthetic", "--only", "estimator=tweedie", "--store", tmp_path)
    out = invoked("run", "realised", "--quick", *asked)
    assert re.search(r"tweedie +\u2013", out)
    assert "floor of the truth" not in out


def test_embeddings_are_tested_on_published_layouts(copies, tmp_path):
    coco(tmp_path / "mscoco")
    ava(tmp_path / "ava")
    made = world("sd35-medium", copies, sets=str(tmp_path))
    retrieval = made.evaluation(made.reward("clip"), 1)
    assert {x.shape[1:] for x in retrieval.images()} == {(3, SIDE, SIDE)}
    assert isinstance(retrieval, Retrieval)
    assert isinstance(made.evaluation(made.reward("aesthetic"), 2), Ratings)
    assert world("sd35-medium", copies).evaluation(made.reward("clip"), 1) is None
    with refused("hpdv2"):
        made.evaluation(made.reward("pick"), 1)


# What goes wrong


def refused(message, error=ValueError):
    return pytest.raises(error, match=re.escape(message))


def test_a_changed_or_missing_file_is_named(copies, tmp_path):
    root = tmp_path / "copies"
    folder = root / published.DFN.repo
    folder.mkdir(parents=True)
    (file,) = published.DFN.files
    (folder / file).write_bytes(b"weights")
    with refused(f"stitchbench weights sum {folder}", FileNotFoundError):
        Copies(root).folder(published.DFN)
    write_sums(folder)
    assert Copies(root).folder(published.DFN) == folder
    (folder / file).write_bytes(b"other weights")
    with refused(f"expected {folder / file} with digest "):
        Copies(root).folder(published.DFN)
    (folder / file).unlink()
    with refused(f"expected {folder / file}, which SHA256SUMS lists, got no such file",
                 FileNotFoundError):  # fmt: skip
        Copies(root).folder(published.DFN)
    (folder / SUMS).write_text("")
    with refused(f"expected {file} in {folder}, got none in SHA256SUMS", FileNotFoundError):
        Copies(root).folder(published.DFN)
    (folder / SUMS).write_text("abc file\n")
    with refused("expected a digest and a file in line 1"):
        Copies(root).folder(published.DFN)


def test_files_are_compared_once(copies, monkeypatch):
    folder = Copies(copies).folder(published.DFN)
    monkeypatch.setattr(kept, "_digest", None)  # whoever compares again fails
    assert Copies(copies).folder(published.DFN) == folder


def answer(kind):
    return kind("refused", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (answer(errors.GatedRepoError), "its licence (Stability AI Community) must be accepted"),
        (answer(errors.RevisionNotFoundError), "it has no revision 'b940f670"),
        (answer(errors.RepositoryNotFoundError), "there is none of that name, or it is private"),
        (answer(errors.HfHubHTTPError), "the hub refused"),
        (errors.LocalEntryNotFoundError("offline"), "the hub is out of reach"),
        (errors.OfflineModeIsEnabled("offline"), "the hub is out of reach"),
    ],
)
def test_what_the_hub_refuses_is_said(monkeypatch, raised, message):
    def snapshot(*_, **__):
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with refused(message):
        download(published.GENERATORS["sd35-medium"])


@pytest.mark.slow  # it is asked several times
def test_the_hub_cannot_be_reached_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    done = CliRunner().invoke(
        cli, ["weights", "get", "sd35-medium", "--to", str(tmp_path / "copies")]
    )
    assert done.exit_code == 2
    assert "the hub is out of reach" in done.output
    assert not list(tmp_path.rglob(SUMS))


def test_weights_are_fetched_summed_and_compared(tmp_path, monkeypatch):
    asked = []

    def snapshot(repo, *, revision, allow_patterns, ignore_patterns, local_dir):
        asked.append((repo, revision))
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / "config.json").write_text("{}")
        return str(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    to = tmp_path / "copies"
    given = ["weights", "get", "flux-dev", "--reward", "dfn", "--tiny", "--to", str(to)]
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 0, done.output
    wanted = [published.GENERATORS["flux-dev"], published.TAEF1, published.DFN, published.CLIP_224]
    assert asked == [(one.repo, one.revision) for one in wanted]
    assert "FLUX.1 [dev] Non-Commercial, gated" in done.output
    assert CliRunner().invoke(cli, ["weights", "check", str(to)]).exit_code == 0
    (to / published.DFN.repo / "config.json").write_text("[]")
    done = CliRunner().invoke(cli, ["weights", "check", str(to)])
    assert done.exit_code == 2
    assert "with digest" in done.output
    (to / published.DFN.repo / "model.bin.incomplete").write_text("")
    done = CliRunner().invoke(cli, ["weights", "sum", str(to / published.DFN.repo)])
    assert done.exit_code == 2
    assert "half-downloaded" in done.output


@pytest.mark.parametrize(
    ("settings", "message", "error"),
    [
        ({"weights": "trained"}, "expected weights to be random, hub, or a folder", OSError),
        ({"weights": "hub", "blocks": 2}, "expected all blocks of published weights", ValueError),
        ({"pictures": "nowhere"}, "expected a folder of images, got no folder nowhere", OSError),
    ],
)
def test_settings_that_do_not_fit(settings, message, error):
    with refused(message, error):
        BUILDS["sd35-medium"](**settings)


def test_hps_has_a_version(copies):
    with refused("'hps-v2.0', 'hps-v2.1'"):
        world("sd35-medium", copies).reward("hps")


def test_sources_are_pinned():
    found = [*published.GENERATORS.values(), *(s for of in published.REWARDS.values() for s in of)]
    assert all(re.fullmatch(r"[0-9a-f]{40}", source.revision) for source in found)
