"""The contracts: all that we ship keeps them, and each check catches what it is for."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bench.algorithms import ALGORITHMS, Made
from bench.cli import cli
from bench.contract import KINDS, check
from bench.contract.files import kind_of
from bench.metrics import METRICS, Metric
from bench.resolve import load_file
from bench.trainers import TRAINERS, Trainer
from bench.worlds import WORLDS
from bench.worlds.gaussian import GaussianWorld
from stitchvm.align.training import PHASES, Record
from stitchvm.memo import Shared, SharedTrunk
from stitchvm.reward import Hidden
from stitchvm.value import ValueEstimator

EXAMPLES = Path(__file__).parent / "examples"
SMALL = {"latent": (2, 2, 2), "components": 3, "rank": 2, "prompts": 4}


def small(**settings):
    return GaussianWorld(**SMALL | settings)


@pytest.fixture(scope="module")
def shapes():
    return WORLDS["shapes"](per_kind=1)


def broken_promises(kind, build, world=None, **settings):
    """What a contract finds wrong, by the name of the check."""
    world, contract = world or small(), KINDS[kind]
    case = contract.case(build, world, world.reward(world.rewards[0]), **settings)
    found = zip(contract.checks, check(case, contract.checks), strict=True)
    return {one.__name__: why for one, (_, why) in found if why is not None}


# What we ship (estimators: test_baselines.py; models' adapters: test_models_*.py)

REWARDS = {name: (lambda world, name=name: world.reward(name)) for name in GaussianWorld.rewards}
SHAPES_REWARDS = ("clip", "aesthetic", "hps", "pick")
BACKBONES = {
    "own": lambda world: world.backbone,
    "shared": lambda world: Shared(world.backbone),
    "shared trunk": lambda world: SharedTrunk(world.backbone),
}
WAYS = {
    "sample": [{}],
    "guide": [{"first": 0.9}, {"profile": "constant", "normalise": "rms"}],
    "steer": [{}, {"proposals": 2, "propose_until": 10, "select": "draw"}],
    "best_of_n": [{}],
}
TRAININGS = {
    "nft": [{}, {"stop": (2, 4)}],
    "draft": [{"last": 2}, {"stop": (2, 5)}],
    "flow_grpo": [{"window": 2}],
}


def each(settings):
    return [(name, one) for name, every in settings.items() for one in every]


def test_everything_has_settings_to_test():
    assert WAYS.keys() == ALGORITHMS.keys()
    assert TRAININGS.keys() == TRAINERS.keys()


@pytest.mark.parametrize("kind", ["reward", "judge"])
@pytest.mark.parametrize("name", REWARDS)
def test_rewards_keep_their_contract_and_are_judges(name, kind):
    assert broken_promises(kind, REWARDS[name]) == {}


@pytest.mark.parametrize("kind", ["reward", "judge"])
@pytest.mark.parametrize("name", SHAPES_REWARDS)
def test_rewards_of_shapes_keep_theirs(name, kind, shapes):
    assert set(SHAPES_REWARDS) == {*shapes.rewards, *shapes.judges}
    assert broken_promises(kind, lambda world: world.reward(name), shapes) == {}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_keep_their_contract(name):
    assert broken_promises("backbone", BACKBONES[name]) == {}


@pytest.mark.parametrize("name", ["own", "tiny", "small"])
def test_backbones_of_shapes_keep_theirs(name, shapes):
    found = {"own": shapes.backbone, "tiny": shapes.tiny, "small": shapes.other("small")}
    assert broken_promises("backbone", lambda _: found[name], shapes) == {}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_keep_their_contract(name):
    assert broken_promises("metric", lambda: METRICS[name]) == {}


@pytest.mark.parametrize(("name", "settings"), each(WAYS))
def test_algorithms_keep_their_contract(name, settings):
    assert broken_promises("algorithm", ALGORITHMS[name], **settings) == {}


@pytest.mark.parametrize(("name", "settings"), each(TRAININGS))
def test_trainers_keep_their_contract(name, settings):
    assert broken_promises("trainer", TRAINERS[name], **settings) == {}


@pytest.mark.parametrize("settings", [{}, {"dtype": "float32"}])
def test_the_gaussian_world_keeps_its_contract(settings):
    assert broken_promises("world", small, **settings) == {}


@pytest.mark.slow
def test_the_shapes_world_keeps_its_contract():
    assert broken_promises("world", WORLDS["shapes"]) == {}


# What each check is for

Leftness = load_file(EXAMPLES / "reward.py", "reward").Leftness
Plain = load_file(EXAMPLES / "backbone.py", "backbone").Plain
Screen = load_file(EXAMPLES / "algorithm.py", "algorithm").Screen


def of(base, *given, **changes):
    """A class with methods in place of its own, built from a world where its base is."""
    kind = type("Broken", (base,), {k: v for k, v in changes.items() if k != "then"})
    then = changes.get("then", lambda made: made)

    def build(*world):
        return then(kind(*(one(*world) for one in given)))

    return build


def reward(**changes):
    then = changes.pop("then", lambda made: made)

    def gained(made):
        made.gain = 1.0
        return then(made)

    return of(Leftness, then=gained, **changes)


def backbone(**changes):
    return of(Plain, lambda world: world.backbone, lambda _: 0.2, **changes)


def screen(**changes):
    return of(Screen, lambda: 2, **changes)


def with_parameter(made):
    made.free = torch.nn.Parameter(torch.zeros(1))
    return made


def single(made):
    made.variance = made.variance.float()
    return made


def after(base, name, change):
    """A method whose result is changed."""
    return lambda self, *given, **more: change(getattr(base, name)(self, *given, **more))


def before(base, name, change):
    """A method whose first argument is changed, in place or not."""
    return lambda self, first, *given: getattr(base, name)(self, change(first), *given)


def spoilt(x):
    with torch.no_grad():
        return x.mul_(0.9)


def centred(x):
    return x - x.mean()


def unseeded(x):
    return x + torch.rand_like(x)


def half_detached(x):
    return (x + x.detach()) / 2


def metric(function, about="a number"):
    return lambda: Metric(function, about, "1", "low")


def mean(samples):
    return samples.value.mean((0, 2, 3))


class Nudge(Trainer):
    """Adds a little to every weight at every step."""

    by = 0.01

    def run(self, pupil, recipe, keep=None):
        if self.stop is not None and self.stop[1] > len(pupil.times) - 1:
            raise ValueError(f"expected stops within the grid, got {self.stop}")
        for step in range(1, recipe.steps + 1):
            for weight in pupil.policy.averaged.values():
                weight.add_(self.by)
            yield Record(step, 0.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, 8 * step,
                         dict.fromkeys(PHASES, 0.1))  # fmt: skip


class Silent(Nudge):
    def run(self, pupil, recipe, keep=None):
        yield from list(super().run(pupil, recipe))[1:]


class Still(Nudge):
    by = 0.0


class Hasty(Nudge):
    def run(self, pupil, recipe, keep=None):
        self.__dict__["by"] = time.perf_counter()
        yield from super().run(pupil, recipe)


class Forgetful(Nudge):
    """Starts anew after a kill, with what it left in the folder on top."""

    def run(self, pupil, recipe, keep):
        if keep.folder is not None and (keep.folder / "begun").exists():
            self.__dict__["by"] = 0.5
        elif keep.folder is not None:
            (keep.folder / "begun").touch()
        yield from super().run(pupil, recipe)


class Greedy(Nudge):
    def run(self, pupil, recipe, keep=None):
        pupil.value.backbone.means.add_(1)
        yield from super().run(pupil, recipe)


class Unbounded(Nudge):
    def run(self, pupil, recipe, keep=None):
        yield from Nudge().run(pupil, recipe)


class Tuned(GaussianWorld):
    tuning = ("scene 0",)


class Renamed(GaussianWorld):
    count = iter(range(100))

    def __init__(self, **settings):
        super().__init__(**settings)
        self.digest = f"{self.digest}-{next(self.count)}"


class Crowded(GaussianWorld):
    def draw(self, c, rng):
        return super().draw(c, rng) + len(c)


class Restless(GaussianWorld):
    def images(self, split, count):
        for shown in super().images(split, count):
            yield shown._replace(x_0=unseeded(shown.x_0))


class Glaring(GaussianWorld):
    def pictures(self, z_0):
        return 5 + self.backbone.decode(z_0)


class Obliging(GaussianWorld):
    def reward(self, name):
        return super().reward(name if name in self.rewards else "linear")


class Unfit(GaussianWorld):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.backbone = backbone(then=single)(self)


class Teaching(GaussianWorld):
    def reward(self, name):
        return with_parameter(super().reward(name))


class Wrong(GaussianWorld):
    def truth(self, reward, target):
        value = super().truth(reward, target)
        value.register_forward_hook(lambda module, given, out: out + 1)
        return value


def world(kind):
    return lambda: kind(**SMALL)


BROKEN = [
    ("reward", "declares", reward(then=with_parameter), "expected frozen weights.*free"),
    ("reward", "shape", reward(score=after(Leftness, "score", lambda r: r[:, None])),
     r"rewards of shape \(5,\), got \(5, 1\)"),
    ("reward", "repeatable", reward(score=after(Leftness, "score", unseeded)), "a gap of"),
    ("reward", "batch_of_one", reward(score=after(Leftness, "score", centred)), "a gap of"),
    ("reward", "leaves_inputs", reward(head=before(Leftness, "head", spoilt)), "a gap of"),
    ("reward", "entered_anywhere", reward(forward=after(Leftness, "forward", lambda r: r + 1)),
     "the same reward at j = 1 to 1e-10, got a gap of 1"),
    ("reward", "advances",
     reward(advance=after(Leftness, "advance", lambda h: Hidden(h.map + 1))), "one map at 1"),
    ("reward", "scores", reward(scores=lambda self, e, c: e @ e.T), "a gap of"),
    ("reward", "gradient", reward(embed=after(Leftness, "embed", half_detached)),
     "the gradient of central differences to 1e-06"),
    ("reward", "weights", reward(tail_weights=lambda self, j: {"w": torch.zeros(1)}),
     r"a name of the state dict, \[\], got 'w'"),
    ("reward", "refuses", reward(head=lambda self, x, j: Hidden(x)), "a ValueError for j = 0"),
    ("backbone", "declares", backbone(then=single), "`empty_latents` of torch.float64"),
    ("backbone", "shape", backbone(velocity=after(Plain, "velocity", lambda u: u / 0)), "finite"),
    ("backbone", "repeatable", backbone(velocity=after(Plain, "velocity", unseeded)), "a gap"),
    ("backbone", "batch_of_one", backbone(velocity=after(Plain, "velocity", centred)), "a gap"),
    ("backbone", "scalar_time",
     backbone(velocity=lambda self, z, t, c: Plain.velocity(self, z, t, c) * (1 + t.ndim)),
     "a gap of"),
    ("backbone", "leaves_inputs", backbone(velocity=before(Plain, "velocity", spoilt)), "a gap"),
    ("backbone", "resumes", backbone(resume=after(Plain, "resume", lambda u: u + 1)),
     "the velocity from block 1 to 1e-10, got a gap of 1"),
    ("backbone", "advances",
     backbone(advance=lambda self, state, i: state.of_rows(torch.arange(4, -1, -1), None)),
     "one block 1"),
    ("backbone", "null_prompt",
     backbone(trunk=lambda self, z, t, i, c=None:
              Plain.trunk(self, z if c is None else z + 1, t, i, c)), "a gap of"),
    ("backbone", "rows",
     backbone(select=lambda self, state, rows: Plain.select(self, state, rows.flip(0))),
     "the velocity of selected rows"),
    ("backbone", "gradient", backbone(velocity=after(Plain, "velocity", half_detached)),
     "the gradient of central differences"),
    ("backbone", "decodes", backbone(decode=after(Plain, "decode", lambda x: x[:, :1])),
     r"images \(B, 3, H, W\)"),
    ("backbone", "decoder_gradient", backbone(decode=after(Plain, "decode", half_detached)),
     "the gradient of central differences"),
    ("backbone", "weights", backbone(trunk_weights=lambda self, i: {"w": torch.zeros(1)}),
     "a tensor of the state dict, got 'w'"),
    ("backbone", "refuses",
     backbone(trunk=lambda self, z, t, i, c=None: Plain.trunk(self, z, t, 1, c)), "i = 0"),
    ("judge", "declares", lambda _: 3, "a function of images and prompts, got int"),
    ("judge", "shape", lambda _: lambda x, c: x.mean(), r"scores of shape \(5,\), got \(\)"),
    ("judge", "repeatable", lambda _: lambda x, c: unseeded(x[:, 0, 0, 0]), "a gap of"),
    ("judge", "batch_of_one", lambda _: lambda x, c: centred(x[:, 0, 0, 0]), "a gap of"),
    ("judge", "leaves_inputs", lambda _: lambda x, c: spoilt(x)[:, 0, 0, 0], "a gap of"),
    ("metric", "declares", metric(mean, "two\nlines"), "expected `about`, a line"),
    ("metric", "shape", metric(lambda s: s.value.mean((0, 1))),
     r"shape \(4,\), one a prompt.*got \(2, 5\)"),
    ("metric", "repeatable", metric(lambda s: mean(s) + np.random.default_rng().random()),
     "again, got"),
    ("metric", "by_prompt", metric(lambda s: mean(s) - s.value.mean()), "of prompt 0 alone"),
    ("metric", "missing", metric(lambda s: mean(s) + 0 * s.value.sum()), "of the others, got"),
    ("metric", "without", metric(lambda s: mean(s) + s.truth.mean((1, 2))), "NoneType"),
    ("metric", "of_one", metric(lambda s: s.value[1].mean((1, 2))), "IndexError"),
    ("prompts", "declares", lambda _: "scene 1", "a list of strings, got str"),
    ("prompts", "once", lambda _: ["scene 1", "scene 1"], "every prompt once, got"),
    ("prompts", "admitted", lambda _: ["a red circle"], "expected prompts 'scene 0'"),
    ("prompts", "repeatable", lambda _: [f"scene {time.perf_counter()}"], "again, got"),
    ("algorithm", "declares", screen(tuned=1), "expected `tuned`, True or False, got 1"),
    ("algorithm", "suits", screen(check=lambda self, setting: 1 / 0), "ZeroDivisionError"),
    ("algorithm", "without_value", screen(check=lambda self, setting: None), "a value estimator"),
    ("algorithm", "shape",
     screen(run=lambda self, s, k, z, c, rng: Made(z)), r"latents of shape \(5, 2, 2, 2\)"),
    ("algorithm", "repeatable",
     screen(run=lambda self, s, k, z, c, rng: Made(unseeded(z[0]))), "a gap of"),
    ("algorithm", "batch_of_one",
     screen(run=lambda self, s, k, z, c, rng: Made(centred(z[0]))), "a gap of"),
    ("algorithm", "leaves_inputs",
     screen(run=lambda self, s, k, z, c, rng: Made(spoilt(z)[0].clone())), "a gap of"),
    ("algorithm", "strength", screen(tuned=True), "a change where `tuned`, True, got the same"),
    ("algorithm", "tilt", screen(lam=lambda self, setting, strength: -1.0), "lambda > 0 or None"),
    ("algorithm", "log",
     screen(run=lambda self, s, k, z, c, rng: Made(z[0], [{"z": z}])), "not JSON serializable"),
    ("trainer", "declares", lambda: None, "a Trainer, got NoneType"),
    ("trainer", "records", Silent, r"steps 1 to 4, got \[2, 3, 4\]"),
    ("trainer", "learns", Still, "weights that move, and stay finite, got 0"),
    ("trainer", "repeatable", Hasty, "a gap of"),
    ("trainer", "goes_on", Forgetful, "a gap of"),
    ("trainer", "leaves_the_generator", Greedy, "one means to 1e-10, got a gap of 1"),
    ("trainer", "stops", lambda: Unbounded((2, 3)), "a ValueError for stops"),
    ("world", "declares", world(Tuned), "prompts to tune on that are not judged, got"),
    ("world", "repeatable", world(Renamed), "the same digest, got"),
    ("world", "draws", world(Crowded), "a gap of 4"),
    ("world", "images", world(Restless), "a gap of"),
    ("world", "shows", world(Glaring), r"pictures in \[-1, 1\], got"),
    ("world", "unknown", world(Obliging), "a reward that it has not"),
    ("world", "generator", world(Unfit), "it is a backbone of the world's latents"),
    ("world", "rewards", world(Teaching), "it is a reward of some blocks"),
    ("world", "truth", world(Wrong), "no bias of linear beyond 5 standard errors"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "build", "message"), BROKEN,
                         ids=[f"{kind}-{name}" for kind, name, *_ in BROKEN])  # fmt: skip
def test_a_broken_promise_is_caught(kind, name, build, message):
    assert re.search(message, broken_promises(kind, build)[name])


def test_every_check_has_something_that_breaks_it():
    caught = {(kind, name) for kind, name, *_ in BROKEN}
    own = {"estimator"}  # test_baselines.py
    checks = {(kind, one.__name__) for kind, c in KINDS.items() if kind not in own
              for one in c.checks}  # fmt: skip
    assert caught == checks


def test_what_the_broken_ones_are_made_of_keeps_its_contract():
    assert broken_promises("reward", reward()) == {}
    assert broken_promises("backbone", backbone()) == {}
    assert broken_promises("algorithm", screen()) == {}
    assert broken_promises("trainer", Nudge) == {}
    assert broken_promises("metric", metric(mean)) == {}


# Which kind a file is


class Lost(ValueEstimator):
    def forward(self, z_t, t, c, rng=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda a, b, c: None, r"got build\(a, b, c\); --kind says which it is"),
        (lambda world: 3, r"got build\(world\) of int"),
        (lambda: 3, r"got build\(\) of int"),
        (lambda world: Lost(), r"got build\(world\) of Lost"),
        (lambda world: METRICS["bias"], r"got build\(world\) of Metric"),
        (lambda world: 1 / 0, "got ZeroDivisionError: division by zero; --kind says"),
    ],
)
def test_a_kind_that_is_not_clear_is_asked_for(build, message):
    with pytest.raises(ValueError, match=message):
        kind_of(build, small())


def test_kinds_that_can_be_named_are_those_that_there_are():
    (option,) = (p for p in cli.get_command(None, "test").params if p.name == "kind")
    assert set(option.type.choices) == set(KINDS)


def test_a_file_that_does_not_build_fails_and_one_that_does_not_load_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def build(world, reward):\n    return 1 / 0\n")
    result = CliRunner().invoke(cli, ["test", str(file)])
    assert result.exit_code == 1
    assert "FAILED  It is built" in result.output
    assert "ZeroDivisionError: division by zero" in result.output
    file.write_text("x = 1\ndef build(:\n")
    result = CliRunner().invoke(cli, ["test", str(file)])
    assert result.exit_code == 2
    assert "SyntaxError: invalid syntax" in " ".join(result.output.split())
    assert "(line 2)" in " ".join(result.output.split())
