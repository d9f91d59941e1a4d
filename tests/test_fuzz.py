"""Fuzzed suites, selections and records: never a traceback, never a wrong table."""

import copy
import io
import json
import shutil
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from records import STEP

from bench import rows
from bench import suite as suites
from bench.cli import main
from bench.how import INLINE
from bench.meter import STAGES
from bench.plan import plan
from bench.run import run
from bench.store import CHECKSUM, Store
from bench.tasks.steps import CLASSIC
from stitchvm.align import training
from stitchvm.align.training import Record

ROUNDS = [15, pytest.param(600, marks=pytest.mark.slow)]  # examples of each property
WORLD = {"build": "gaussian", "latent": [2, 2, 1], "components": 2, "rank": 2, "prompts": 3}
COMMON = {"about": "a test", "minutes": 0.1, "isolation": "inline"}
VALUE = {
    **COMMON,
    "name": "value",
    "defaults": {"world": WORLD, "reward": "linear", "prompts": 3, "calls": 1, "members": 2}
    | {"sigmas": [0.3, 0.7], "replicates": 2},
    "axes": {"estimator": ["constant", {"name": "T", "build": "tweedie", "posterior": "data"}]},
    "include": [{"estimator": "truth", "gradient": False}],
    "exclude": [{"estimator": "terminal"}],
    "quick": {"sigmas": [0.5]},
}
ALIGN = {
    **COMMON,
    "name": "align",
    "task": "align",
    "defaults": {"world": WORLD, "reward": "linear", "kernel": "square", "steps": 3}
    | {"samples": 2, "drawn": 4, "rounds": 2, "cost_batches": [1]},
    "axes": {
        "method": [
            {"algorithm": "sample", "estimator": "none"},
            {"algorithm": {"build": "guide", "first": 0.9}, "estimator": "tweedie",
             "errors": [0.34]},
        ]
    },
}  # fmt: skip
TRAIN = {
    **COMMON,
    "name": "train",
    "task": "train",
    "defaults": {"world": WORLD, "reward": "linear", "algorithm": "nft", "steps": 3, "rounds": 1}
    | {"updates": 2, "prompts": 2, "group": 2, "known": 3, "every": 1, "samples": 2},
    "axes": {"estimator": ["terminal"]},
}
SUITES = {"value": VALUE, "align": ALIGN, "train": TRAIN}
SHIPPED = [yaml.safe_load(path.read_text()) for path in suites.shipped().values()]
QUICK = [data for data in SHIPPED if "shapes" not in str(data)]  # to plan: networks take seconds


def said(*arguments):
    """Exit code and all output of a command; an exception is the test's failure."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers that fuzzed settings make
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
    assert "Traceback" not in out.getvalue()
    return ended.value.code or 0, out.getvalue()


def refused(output):
    """Whether all that a command said is how it is used, and one sentence."""
    return sum(line.startswith("Error: ") for line in output.splitlines()) == 1


def assert_no_suite(file):
    """Hold that a file is refused as a suite, in one sentence."""
    code, out = said("plan", file)
    assert code == 2
    assert refused(out)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.sampled_from([float("nan"), float("inf"), -0.0, 0.5, 1e308, 2**70])
    | st.sampled_from(["", "tweedie", "a:b", "x.py", "json:dumps", "..x:y", "+", "~/no.py:f"])
    | st.text(max_size=4)
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["build", "name", "world", "estimator", "prompts"])
                      | st.text(max_size=3) | st.integers(0, 3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(data, here=()):
    """Where mutations can happen: paths into nested plain data."""
    if here:
        yield here
    inside = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in inside:
        yield from places(value, (*here, key))


@st.composite
def mutated(draw, sources, values=plain):
    """One of some plain data with one to three changes."""
    data = copy.deepcopy(draw(st.sampled_from(sources)))
    for _ in range(draw(st.integers(1, 3))):
        spots = list(places(data))
        if not spots:
            break
        *way, last = draw(st.sampled_from(spots))
        at = data
        for key in way:
            at = at[key]
        change = draw(st.sampled_from(["drop", "put", "key"]))
        if change == "drop":
            del at[last]
        elif change == "key" and isinstance(at, dict):
            at[draw(st.text(max_size=3) | st.sampled_from(["axis", "sigma", "seed"]))] = at.pop(
                last
            )
        else:
            at[last] = draw(values)
    return data


def fuzzed(rounds):
    return settings(
        max_examples=rounds,
        deadline=None,
        database=None,
        derandomize=rounds == ROUNDS[0],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_random_suite_is_refused_in_a_sentence(rounds, tmp_path):
    file = tmp_path / "mine.yaml"

    @fuzzed(rounds)
    @given(plain | st.dictionaries(st.sampled_from(sorted(VALUE)), plain, max_size=6))
    @example({**COMMON, "name": "x", "axes": {"estimator": [{"x": 1}]}, "defaults": {}})
    def check(data):
        file.write_text(yaml.safe_dump(data, allow_unicode=True), errors="surrogatepass")
        assert_no_suite(file)

    check()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_random_bytes_are_no_suite(rounds, tmp_path):
    file = tmp_path / "mine.yaml"

    @fuzzed(rounds)
    @given(st.binary(max_size=60) | st.text(max_size=60).map(lambda x: x.encode(errors="replace")))
    @example(b"[" * 5000)
    @example(b"&a [*a, *a]")
    @example(b"a: &a\n  b: *a\n")
    def check(data):
        file.write_bytes(data)
        assert_no_suite(file)

    check()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_mutated_suite_plans_or_is_refused(rounds, tmp_path):
    file = tmp_path / "mine.yaml"

    @fuzzed(rounds)
    @given(
        mutated([*SUITES.values(), *(QUICK if rounds == ROUNDS[0] else SHIPPED)]), st.booleans()
    )
    @example(VALUE | {"exclude": [{"estimator": {"x": 1}}]}, False)  # noqa: FBT003
    @example(
        VALUE | {"defaults": VALUE["defaults"] | {"world": WORLD | {"prompts": 10**15}}}, True
    )  # noqa: FBT003
    @example(VALUE | {"axes": {"estimator": ["functools:partial", "os:getcwd"]}}, True)  # noqa: FBT003
    @example(VALUE | {"axes": {"both": [{0: None}]}}, False)  # noqa: FBT003
    def check(data, quick):
        file.write_text(yaml.safe_dump(data))
        code, out = said("plan", file, *["--quick"][: int(quick)])
        assert code in {0, 2}
        assert code == 0 or refused(out)

    check()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_mutated_suite_runs_fails_or_is_refused(rounds, tmp_path):
    file, store = tmp_path / "mine.yaml", tmp_path / "store"

    @fuzzed(max(rounds // 5, 5))
    @given(mutated([VALUE, ALIGN]))
    def check(data):
        shutil.rmtree(store, ignore_errors=True)
        if isinstance(data, dict):
            data |= {"isolation": "inline"}
        file.write_text(yaml.safe_dump(data))
        code, out = said("run", file, "--quick", "--store", store)
        assert code in {0, 1, 2, 3}
        assert code != 2 or refused(out)

    check()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_random_selections_select_or_are_refused(rounds, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(VALUE))
    words = st.text(max_size=8) | st.sampled_from(
        ["estimator=T", "sigmas=0.5", "reward=linear,[", "seed", "world={build: gaussian}", "~&=",
         "estimator~", "prompts=99999999999", "members=1e9", "estimator=[[]]"]
    )  # fmt: skip

    @fuzzed(rounds)
    @given(st.sampled_from(["--only", "--set", "--world"]), words)
    def check(option, text):
        code, out = said("plan", file, f"{option}={text}")
        assert code in {0, 2}
        assert code == 0 or refused(out)

    check()


# Records


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A store of all tasks that show tables quickly."""
    folder = tmp_path_factory.mktemp("fuzz")
    store = Store(folder / "store")
    for name, data in SUITES.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data))
        cells = plan(suites.load(str(folder / f"{name}.yaml")))
        run(cells, store, INLINE)
    assert {record["status"] for record in store.records()} == {"ok"}
    return store


def records_of(store):
    return sorted(store.path.rglob("result.json"))


def shown(store):
    """What `table` prints of a store, warnings apart, and the warnings."""
    code, out = said("table", store.path)
    assert code == 0, out
    lines = out.splitlines()
    return [x for x in lines if not x.startswith("warning: ")], [
        x for x in lines if x.startswith("warning: ")
    ]


@pytest.fixture(scope="module")
def without(full, tmp_path_factory):
    """Tables of the store without one of its records, by that record's path in it."""
    found = {}
    for path in records_of(full):
        folder = tmp_path_factory.mktemp("without") / "store"
        shutil.copytree(full.path, folder)
        (folder / path.relative_to(full.path)).unlink()
        found[path.relative_to(full.path)] = shown(Store(folder))[0]
    return found


huge = st.sampled_from(
    ["x" * 10_000, "<script>", "\N{RIGHT-TO-LEFT OVERRIDE}", "a\nb", 10**400, []]
)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_mutated_record_is_skipped_and_the_others_are_shown_as_they_were(
    rounds, full, without, tmp_path
):
    store = Store(tmp_path / "store")
    shutil.copytree(full.path, store.path)
    paths = [path.relative_to(full.path) for path in records_of(full)]

    @fuzzed(rounds)
    @given(st.sampled_from(paths), st.data())
    def check(path, data):
        whole = (full.path / path).read_bytes()
        kept = json.loads(whole)
        other = data.draw(mutated([kept], plain | huge))
        try:
            text = json.dumps(other, default=str).encode()
        except (TypeError, ValueError):  # no JSON can say it
            return
        same = json.loads(text) == kept
        dropped = isinstance(other, dict) and CHECKSUM not in other
        (store.path / path).write_bytes(text)
        try:
            lines, problems = shown(store)
        finally:
            (store.path / path).write_bytes(whole)
        if not same and not dropped:
            assert lines == without[path]
            assert len([x for x in problems if str(path) in x]) == 1

    check()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_torn_bytes_are_skipped_and_the_others_are_shown_as_they_were(
    rounds, full, without, tmp_path
):
    store = Store(tmp_path / "store")
    shutil.copytree(full.path, store.path)
    paths = [path.relative_to(full.path) for path in records_of(full)]

    @fuzzed(rounds)
    @given(st.sampled_from(paths), st.floats(0, 1), st.binary(max_size=4))
    @example(paths[0], 0.0, b"[" * 200_000)
    def check(path, share, put):
        whole = (full.path / path).read_bytes()
        at = int(share * len(whole))
        torn = whole[:at] + put + (whole[at + len(put) :] if put else b"")
        (store.path / path).write_bytes(torn)
        try:
            same = json.loads(torn) == json.loads(whole)
        except (ValueError, RecursionError):
            same = False
        try:
            lines, problems = shown(store)
        finally:
            (store.path / path).write_bytes(whole)
        if not same:
            assert lines == without[path]
            assert len([x for x in problems if str(path) in x]) == 1

    check()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_an_older_record_without_a_checksum_is_shown_or_skipped_and_said(
    rounds, full, without, tmp_path
):
    store = Store(tmp_path / "store")
    shutil.copytree(full.path, store.path)
    paths = [path.relative_to(full.path) for path in records_of(full)]

    @fuzzed(rounds)
    @given(st.sampled_from(paths), st.data())
    def check(path, data):
        whole = (full.path / path).read_bytes()
        kept = {k: v for k, v in json.loads(whole).items() if k != CHECKSUM}
        other = data.draw(mutated([kept], plain | huge))
        try:
            text = json.dumps(other, default=str).encode()
        except (TypeError, ValueError):
            return
        (store.path / path).write_bytes(text)
        try:
            lines, problems = shown(store)
        finally:
            (store.path / path).write_bytes(whole)
        if any(str(path) in problem for problem in problems):
            assert lines == without[path]

    check()


def test_only_a_record_that_says_no_checksum_needs_none(full, tmp_path):
    store = Store(tmp_path / "store")
    shutil.copytree(full.path, store.path)
    path = records_of(store)[0]
    kept = json.loads(path.read_bytes())
    for sums, problems in (({}, 0), ({CHECKSUM: None}, 1), ({CHECKSUM: "0" * 16}, 1)):
        rest = {name: value for name, value in kept.items() if name != CHECKSUM}
        path.write_text(json.dumps(rest | sums))
        assert len(shown(store)[1]) == problems, sums


def test_what_is_wrong_with_a_record_is_said_in_one_short_line(full, tmp_path):
    store = Store(tmp_path / "store")
    shutil.copytree(full.path, store.path)
    path = records_of(store)[0]
    text = "a\nb\N{RIGHT-TO-LEFT OVERRIDE}" + "x" * 10_000
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"schema": text}))
    assert len(store.latest()) == len(records_of(store)) - 1
    assert store.problems[0].isprintable()
    assert len(store.problems[0]) < 400


def test_readers_rely_on_what_the_tasks_say():
    told = {*Record._fields, *training.PHASES} - {"step", "samples", "seconds"}
    assert set(rows.FIGURES) == told
    assert rows.PHASES == training.PHASES
    assert rows.STAGES == STAGES
    assert set(rows.STEPS) == {"guided", "unsteered"}  # classic DPS is timed if asked


@pytest.mark.parametrize("lacking", ["flops", "peaks"])
def test_a_step_that_was_timed_has_its_other_figures_too(lacking):
    kept = {name: x for name, x in STEP[lacking].items() if name != CLASSIC}
    with pytest.raises(ValueError, match=CLASSIC):
        rows.StepRow.model_validate(STEP | {lacking: kept})


def test_a_torn_judge_is_skipped(full, tmp_path):
    store = Store(tmp_path / "store")
    shutil.copytree(full.path, store.path)
    before = shown(store)[0]
    (path,) = {p.parent for p in records_of(store) if b'"guide"' in p.read_bytes()}
    for text in ("{", "[]", '{"scores": {"eval": [[]]}}', '{"scores": {"eval": [[NaN]]}}'):
        (path / "judge-mine.json").write_text(text)
        lines, problems = shown(store)
        assert lines == before
        assert "judge-mine.json: skipped, no scores" in problems[0]
    assert Path(path / "judge-mine.json").exists()
