"""The schemas hold for what we ship and write, and not for what is misspelt."""

import copy
import json

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from records import ROWS, failed, record

from bench import schema
from bench.cli import cli
from bench.protocols import PROTOCOLS
from bench.statuses import STATUSES
from bench.suite import FIELDS, shipped

SUITE = {"name": "mine", "about": "a test", "minutes": 1}


@pytest.fixture(scope="module")
def of_suite():
    return Draft202012Validator(schema.suite())


@pytest.fixture(scope="module")
def of_record():
    return Draft202012Validator(schema.record())


@pytest.mark.parametrize("what", ["suite", "record"])
def test_a_schema_is_one(what):
    printed = CliRunner().invoke(cli, ["schema", what])
    assert printed.exit_code == 0
    found = json.loads(printed.output)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(found)
    assert found == json.loads(json.dumps(schema.SCHEMAS[what]()))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_suite_is_valid(of_suite, name):
    of_suite.validate(yaml.safe_load(shipped()[name].read_text()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axis": {}}, "'axis' was unexpected"),
        ({"task": "values"}, "'values' is not one of"),
        ({"defaults": {"sigma": [0.5]}}, "'sigma' was unexpected"),
        ({"task": "value", "defaults": {"rank": 4}}, "'rank' was unexpected"),
        ({"task": "align", "defaults": {"replicates": 4}}, "'replicates' was unexpected"),
        ({"quick": {"prompt": 3}}, "3 is not of type 'array'"),
        ({"defaults": {"prompts": 1}}, "1 is less than the minimum of 2"),
        ({"defaults": {"latents": "date"}}, "'date' is not one of"),
        ({"axes": {"estimater": ["tweedie"]}}, "'tweedie' is not of type 'object'"),
        ({"axes": {"way": [{"estimater": "tweedie"}]}}, "'estimater' was unexpected"),
        ({"axes": {"estimator": "tweedie"}}, "'tweedie' is not of type 'array'"),
        ({"axes": {"estimator": [{"name": "x"}]}}, "is not valid under any"),
        ({"include": [{"estimater": "tweedie"}]}, "'estimater' was unexpected"),
        ({"exclude": [{"estimater": "tweedie"}]}, "'estimater' was unexpected"),
    ],
)
def test_a_misspelt_suite_is_not(of_suite, changes, said):
    assert said in "\n".join(e.message for e in of_suite.iter_errors(SUITE | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"axes": {"sigmas": [[0.1, 0.5], [0.9]], "way": [{"estimator": "a", "reward": "b"}]}},
        {"include": [{"estimator": ["a", {"build": "b", "k": 3}], "sigmas": [0.1, 0.5]}]},
        {"include": [{"estimator": "a", "sigmas": [[0.1], [0.5, 0.9]]}]},
        {"task": "align", "axes": {"algorithm": [{"build": "guide", "first": 0.9}]}},
        {"task": "train", "defaults": {"rates": [1e-3, 1e-2], "reward": "clip+hps"}},
        {"task": "interface", "defaults": {"entries": None, "i": 3}},
    ],
)
def test_what_a_suite_may_say(of_suite, changes):
    assert list(of_suite.iter_errors(SUITE | changes)) == []


def test_editors_are_told_what_a_field_is():
    found = schema.suite()
    assert found["properties"]["minutes"]["description"] == "Expected, see `where`."
    of_value = found["$defs"]["fields-value"]["properties"]
    assert of_value["sigmas"]["description"].startswith("Noise levels, each strictly between")
    assert of_value["latents"]["enum"] == ["data", "sampler"]
    environment = schema.record()["$defs"]["Environment"]["properties"]
    assert environment["quota"]["description"].startswith("How many cores a container granted")
    for task in PROTOCOLS:
        told = found["$defs"][f"fields-{task}"]["properties"]
        assert set(told) == set(FIELDS[task])
        assert all("description" in field for field in told.values())


@pytest.mark.parametrize("task", ROWS)
def test_every_kind_of_record_is_valid(of_record, task):
    of_record.validate(record(task))


@pytest.mark.parametrize("status", STATUSES)
def test_what_may_come_of_a_cell(of_record, status):
    ended = {"code": None, "signal": "SIGKILL"}
    code = {"roots": ["bench.tasks.value"], "digest": "0" * 16, "python": "3.12"}
    of_record.validate(failed(status, exit=ended, command="x", code=code))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("status",), "fine", "'fine' is not one of"),
        (("schema",), 2, "1 was expected"),
        (("spec", "sede"), 1, "'sede' was unexpected"),
        (("spec", "protocol", "prompt"), 3, "'prompt' was unexpected"),
        (("environment", "threads"), "one", "'one' is not of type 'integer'"),
        (("rows", 0, "call_seconds"), [None], "None is not of type 'number'"),
        (("rows", 0, "metrics"), [], "[] is not of type 'object'"),
        (("exit",), {"code": "1"}, "'1' is not of type"),
    ],
)
def test_a_misspelt_record_is_not(of_record, path, value, said):
    broken = copy.deepcopy(record())
    at = broken
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert said in "\n".join(e.message for e in of_record.iter_errors(broken))


@pytest.mark.parametrize(
    ("task", "key"),
    [("value", "z_digest"), ("robustness", "marks"), ("cost", "seconds"), ("train", "phase")],
)
def test_a_row_is_that_of_its_task(of_record, task, key):
    broken = record(task)
    del broken["rows"][0][key]
    said = [e.message for e in every(of_record.iter_errors(broken))]
    assert f"'{key}' is a required property" in said


def every(errors):
    """Errors, and those of the choices that they offer."""
    for error in errors:
        yield error
        yield from every(error.context)
