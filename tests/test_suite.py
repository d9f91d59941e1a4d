"""Suites, cells and names: what a YAML file means, and how it says no."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench import suite as suites
from bench.cell import PATHS, Cell, Part, Spec, digest
from bench.plan import plan
from bench.protocols import Protocol
from bench.resolve import UnknownName, complete, resolve
from bench.worlds import WORLDS
from stitchvm.sample import NU

MINE = """
import torch
from stitchvm.value import Target, ValueEstimator

class Zero(ValueEstimator):
    differentiable = False
    def __init__(self, backbone, level):
        super().__init__()
        self.latent, self.level, self.target = backbone.latent, level, Target()
    def forward(self, z_t, t, c, rng=None):
        return torch.full((len(z_t),), self.level, dtype=z_t.dtype)

def build(world, reward, *, level: float = 0.0):
    return Zero(world.backbone, level)
"""
BASE = {
    "name": "mine",
    "about": "a test",
    "minutes": 0.1,
    "defaults": {"world": "gaussian", "reward": "linear", "prompts": 2},
    "axes": {"estimator": ["tweedie", "constant"]},
}


def with_defaults(changes):
    return {"defaults": BASE["defaults"] | changes}


def written(path: Path, **changes) -> Path:
    file = path / "mine.yaml"
    file.write_text(yaml.safe_dump(BASE | changes))
    return file


def planned(path: Path, **changes) -> list[Cell]:
    return plan(suites.load(str(written(path, **changes))))


def test_axes_multiply_and_bundles_zip(tmp_path):
    axes = {
        "estimator": ["tweedie", "constant"],
        "reward": ["linear", "sigmoid"],
        "where": [{"latents": "data", "group": "independent"},
                  {"latents": "sampler", "group": "siblings"}],
    }  # fmt: skip
    cells = planned(tmp_path, axes=axes)
    found = [
        (c.label, c.spec.reward.build, c.spec.protocol.latents, c.spec.protocol.group)
        for c in cells
    ]
    assert len(cells) == 8
    assert ("constant", "sigmoid", "sampler", "siblings") in found
    assert not any(latents == "sampler" and group == "independent" for *_, latents, group in found)


def test_include_adds_a_grid_and_exclude_drops_cells(tmp_path):
    cells = planned(
        tmp_path,
        include=[{"estimator": ["terminal", "truth"], "reward": ["linear", "sigmoid"]}],
        exclude=[{"estimator": "constant"}, {"estimator": "truth", "reward": "sigmoid"}],
    )
    assert [(c.label, c.spec.reward.build) for c in cells] == [
        ("tweedie", "linear"),
        ("terminal", "linear"),
        ("terminal", "sigmoid"),
        ("truth", "linear"),
    ]


def test_set_replaces_axes_and_sigmas_stay_one_list(tmp_path):
    suite = suites.load(str(written(tmp_path)))
    changes = {
        "reward": suites.values("reward", "linear,quadratic"),
        "sigmas": suites.values("sigmas", "0.2,0.4"),
    }
    cells = plan(suite, changes=changes)
    assert len(cells) == 4
    assert {c.spec.protocol.sigmas for c in cells} == {(0.2, 0.4)}


def test_quick_overrides_and_is_marked(tmp_path):
    suite = suites.load(str(written(tmp_path, quick={"sigmas": [0.3], "replicates": 2})))
    quick, slow = plan(suite, quick=True), plan(suite)
    assert quick[0].spec.protocol.sigmas == (0.3,)
    assert quick[0].quick
    assert not {c.id for c in quick} & {c.id for c in slow}


def test_what_only_leaves_out_need_not_resolve(tmp_path):
    axes = {"estimator": ["tweedie", "nobody"], "world": ["gaussian", "nowhere"]}
    axes |= {"reward": ["linear", "sigmod"]}
    suite = suites.load(str(written(tmp_path, axes=axes)))
    [cell] = plan(suite, only="estimator=tweedie & world!=nowhere & reward~lin")
    assert (cell.label, cell.spec.reward.build) == ("tweedie", "linear")
    for only, message in {
        "estimator=tweedie & reward=linear": "unknown world 'nowhere'",
        "world=gaussian & reward=linear": "unknown estimator 'nobody'",
        "estimator=tweedie & world=gaussian": "world 'gaussian': unknown reward 'sigmod'",
        "estimator=tweedie & world=gaussian & grid=snr": "unknown reward 'sigmod'",
    }.items():
        with pytest.raises(ValueError, match=message):
            plan(suite, only=only)


def test_only_keeps_the_names_that_tell_cells_apart(tmp_path):
    suite = suites.load(str(written(tmp_path)))
    every = plan(suite, changes={"batch": [16, 64]})
    some = plan(suite, changes={"batch": [16, 64]}, only="estimator=tweedie")
    assert [c.coordinates for c in some] == [c.coordinates for c in every if c.label == "tweedie"]


def test_only_selects(tmp_path):
    suite = suites.load(
        str(written(tmp_path, axes={"estimator": ["tweedie", "constant", "truth"]}))
    )

    def labels(only):
        return [c.label for c in plan(suite, only=only)]

    assert labels("estimator=tweedie") == ["tweedie"]
    assert labels("estimator!=tweedie & reward=linear") == ["constant", "truth"]
    assert labels("estimator~t & estimator != constant") == ["tweedie", "truth"]
    with pytest.raises(ValueError, match="expected COORDINATE=VALUE, != or ~, got 'tweedie'"):
        labels("tweedie")
    with pytest.raises(UnknownName, match="unknown coordinate 'estimater'.*'estimator'"):
        labels("estimater=tweedie")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, r"unknown key in .*: 'axis': expected one of .*did you mean 'axes'\?"),
        (with_defaults({"promts": 3}), r"unknown field 'promts'.*'prompts'"),
        ({"axes": {"estimator": ["tweedy"]}}, "unknown estimator 'tweedy'.*you mean 'tweedie'"),
        (with_defaults({"world": "gausian"}), "unknown world 'gausian'.*gaussian"),
        (with_defaults({"reward": "sigmod"}), "unknown reward 'sigmod'.*'sigmoid'"),
        (with_defaults({"sigmas": [0.0, 0.5]}), "strictly between 0 and 1, got"),
        (with_defaults({"sigmas": [1]}), "strictly between 0 and 1, got"),
        (with_defaults({"sigmas": 0.25}), "sigmas: expected a list, got 0.25"),
        ({"axes": {"estimator": "truth"}}, "axes.estimator: expected a list, got 'truth'"),
        (with_defaults({"latents": "dta"}), "latents: .*'data' or 'sampler'"),
        (with_defaults({"replicates": "few"}), "replicates: .*integer.*'few'"),
        ({"axes": {"estimator": [{"build": "monte_carlo", "particle": 4}]}},
         "unknown setting of estimator 'monte_carlo.particle=4.' 'particle'.*'particles'"),
        ({"axes": {"estimator": [{"build": "monte_carlo", "particles": "four"}]}},
         "particles: .*integer.*got 'four'"),
        ({"axes": {"estimator": [{"particles": 4}]}}, "expected estimator as a name or a mapping"),
        ({"axes": {"where": ["data"]}}, "unknown axis 'where'"),
        ({"minuts": 1, "minutes": None}, "unknown key in .*: 'minuts'.*did you mean 'minutes'"),
        ({"axes": {"estimator": [["tweedie"]]}}, "expected estimator as a name or a mapping"),
        (with_defaults({"world": {"build": "gaussian", "device": "cpu"}}), "expected no device"),
        ({"axes": {"estimator": ["missing.py:build"]}}, "expected the file of estimator 'missing"),
        ({"axes": {"estimator": ["no.such.thing:build"]}}, "expected a module 'no.such.thing'"),
        ({"axes": {"estimator": [{"name": "x", "build": "tweedie"},
                                 {"name": "x", "build": "constant"}]}},
         "expected one estimator called 'x', got several"),
    ],
)  # fmt: skip
def test_bad_suites_say_what_was_expected(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, **changes)


def test_a_suite_that_is_nowhere_or_no_mapping(tmp_path):
    with pytest.raises(UnknownName, match="unknown suite 'quickstrat'.*did you mean 'quickstart'"):
        suites.load("quickstrat")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="expected a mapping of name, about"):
        suites.load(str(tmp_path / "list.yaml"))
    (tmp_path / "torn.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="expected YAML"):
        suites.load(str(tmp_path / "torn.yaml"))


def test_shipped_suites_plan_and_state_their_cost():
    for name in suites.shipped():
        suite = suites.load(name)
        assert suite.name == name
        assert 0 < suite.minutes <= 120
        assert plan(suite, quick=True)
        if name != "realised":  # whose published weights are those of test_full_stored.py
            assert plan(suite)


def test_table5_asks_every_shipped_model_that_does_not_see_the_prompt():
    cells = plan(suites.load("table5"))
    assert len(cells) == 10 * 3 * 2 + 2 * 2  # an embedding of any length for two of the rewards
    assert {c.spec.task for c in cells} == {"robustness"}
    assert {c.coordinates["grid"] for c in cells} == {"plain", "snr"}
    world = WORLDS["shapes"]()
    asked = {(c.spec.reward.build, c.spec.estimator.settings.get("model")) for c in cells}
    shipped = {(r, name) for r in world.rewards for name in world.trained(r)}
    assert {pair for pair in asked if pair[1]} == shipped - {("aesthetic", "stitched_prompt")}
    digests = {c.spec.estimator.digest for c in cells if c.spec.estimator.settings.get("model")}
    assert len(digests) == len(shipped) - 1


def test_paths_count_but_for_those_that_our_worlds_read():
    def id_of(kind, source, **settings):
        parts = {name: Part(build=name) for name in ("world", "reward", "estimator")}
        parts[kind] = Part(build=kind, settings=settings, source=source)
        return Spec(**parts, protocol=Protocol(), prompts="0").id

    for name in ("weights", *PATHS):
        pair = [{name: "here"}, {name: "there"}]
        assert len({id_of("world", None, **one) for one in pair}) == 1
        assert len({id_of("world", "file", **one) for one in pair}) == 2
        assert len({id_of("estimator", "file", **one) for one in pair}) == 2
    assert id_of("world", None, weights="hub") != id_of("world", None, weights="random")


def test_ids_of_value_cells_do_not_change_with_other_tasks():
    parts = {kind: Part(build=kind) for kind in ("world", "reward", "estimator")}
    assert Spec(**parts, protocol=Protocol(), prompts="0").id == "863a8b282378ea06"


def test_a_file_is_an_estimator_and_its_content_is_identity(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    entry = {"build": f"{file}:build", "level": 0.5}
    first = planned(tmp_path, axes={"estimator": [str(file), entry]})
    assert [c.label for c in first] == ["mine", "mine(level=0.5)"]
    assert first[0].spec.estimator.settings == {"level": 0.0}
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "mine.py"
    moved.write_text(MINE)
    assert planned(tmp_path, axes={"estimator": [str(moved)]})[0].id == first[0].id
    file.write_text(MINE + "\n# changed\n")
    second = planned(tmp_path, axes={"estimator": [str(file), entry]})
    assert not {c.id for c in first} & {c.id for c in second}


def test_kernels_of_the_protocol_are_those_of_the_samplers():
    kernels = Protocol.model_fields["kernel"].annotation.__args__
    assert set(kernels) == set(NU)


def test_defaults_written_out_or_not_are_the_same_cell(tmp_path):
    plain = planned(tmp_path)[0]
    spelt = planned(
        tmp_path,
        defaults=BASE["defaults"] | {"replicates": 8, "latents": "data"},
        axes={"estimator": [{"build": "tweedie", "posterior": "prompt", "name": "other name"}]},
    )[0]
    assert plain.id == spelt.id


def test_fields_that_differ_in_one_name_are_told_apart(tmp_path):
    suite = suites.load(str(written(tmp_path)))
    cells = plan(suite, changes={"batch": [16, 64]})
    assert [c.coordinates["variant"] for c in cells] == ["batch=16", "batch=64"] * 2
    worlds = [{"build": "gaussian", "name": "small", "prompts": 4}, "gaussian"]
    cells = plan(suite, changes={"world": worlds})
    assert {c.coordinates["world"] for c in cells} == {"small", "gaussian"}


def test_set_does_not_measure_an_included_cell_twice(tmp_path):
    include = [{"estimator": "truth", "gradient": False}]
    suite = suites.load(str(written(tmp_path, include=include)))
    cells = plan(suite, changes={"estimator": ["truth", "terminal"]})
    assert [(c.label, c.spec.protocol.gradient) for c in cells] == [
        ("truth", True),
        ("terminal", True),
    ]


def test_device_and_threads_are_part_of_a_cell_but_not_the_devices_number(tmp_path):
    suite = suites.load(str(written(tmp_path)))
    ids = {
        (device, threads): plan(suite, device=device, threads=threads)[0].id
        for device in ("cpu", "cuda", "cuda:1")
        for threads in (1, 2)
    }
    assert ids["cuda", 1] == ids["cuda:1", 1]
    assert len(set(ids.values())) == 4


def test_an_edited_file_is_loaded_anew(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def build():\n    return 1\n")
    assert resolve(str(file), {}, "thing")() == 1
    file.write_text("def build():\n    return 2\n")
    assert resolve(str(file), {}, "thing")() == 2


@pytest.mark.parametrize("text", ["", "[", "a: ]"])
def test_set_refuses_what_is_no_list(text):
    with pytest.raises(ValueError, match="expected --set estimator=V1,V2, got"):
        suites.values("estimator", text)


def test_set_takes_mappings():
    text = "truth,{build: monte_carlo, particles: 4}"
    assert suites.values("estimator", text) == ["truth", {"build": "monte_carlo", "particles": 4}]


def test_ids_are_the_same_in_another_process_and_after_a_round_trip(tmp_path):
    cell = planned(tmp_path)[0]
    assert Cell.model_validate_json(cell.model_dump_json()).id == cell.id
    shuffled = json.dumps(dict(reversed(list(cell.model_dump(mode="json").items()))))
    code = (
        "import sys; from bench.cell import Cell; "
        "print(Cell.model_validate_json(sys.stdin.read()).id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=shuffled, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == cell.id


def test_golden_id():
    """An id that changes here changes in every store: raise SCHEMA when that is meant."""
    assert (
        digest({"b": [1, 2.0, "x"], "a": {"t": True, "n": None, "f": 0.1}}) == "f0b0ecfbb38e7b65"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"defaults": BASE["defaults"] | {"prompts": 3}},
        {"defaults": BASE["defaults"] | {"reward": "sigmoid"}},
        with_defaults({"world": {"build": "gaussian", "seed": 1}}),
        {"defaults": BASE["defaults"] | {"world": {"build": "gaussian", "dtype": "float32"}}},
        {"defaults": BASE["defaults"] | {"pairing": "mismatched"}},
        {"axes": {"estimator": [{"build": "tweedie", "posterior": "data"}]}},
    ],
)
def test_what_changes_a_result_changes_the_id(tmp_path, change):
    assert planned(tmp_path)[0].id != planned(tmp_path, **change)[0].id


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), plain, max_size=4))
def test_key_order_and_json_round_trips_do_not_change_a_digest(data):
    assert digest(dict(reversed(list(data.items())))) == digest(data)
    assert digest(json.loads(json.dumps(data))) == digest(data)


def test_digest_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"x": float("nan")})


def test_resolve_and_complete_messages(tmp_path):
    def build(world, extra=1, *, size: int, name: str = "x"):
        return world, extra, size, name

    with pytest.raises(ValueError, match="thing 'y': expected a setting 'size', got none"):
        complete(build, {}, "thing 'y'")
    with pytest.raises(ValueError, match="y: expected 'extra' as a keyword-only parameter"):
        complete(build, {"size": 2, "extra": 2}, "y")
    assert complete(build, {"size": 2}, "y") == {"size": 2, "name": "x"}
    assert resolve("a", {"a": build}, "thing") is build
    assert resolve("json:dumps", {}, "thing") is json.dumps
    file = tmp_path / "empty.py"
    file.write_text("")
    with pytest.raises(ValueError, match=f"expected a function 'build' in {file}, found none"):
        resolve(str(file), {}, "thing")
