"""JSON Schema (draft 2020-12) of a suite file and of a record, from the models that read them.

Editors complete and check suites by it; it says no more than the models do.  In a suite the task
decides which fields there are, in a record what a row holds: an `if`/`then` for each task.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from bench.cell import SCHEMA, Spec
from bench.part import Part
from bench.protocols import PROTOCOLS
from bench.rows import ROWS
from bench.statuses import STATUSES
from bench.store import Environment, Record
from bench.suite import FIELDS, Suite

Schema = dict[str, Any]
DESCRIBED = (Spec, Part, Environment, *PROTOCOLS.values())  # what records are made of
DIALECT = "https://json-schema.org/draft/2020-12/schema"
PART: Schema = {
    "description": "A registered name, `file.py:build` or `package:build`, or a mapping of it "
    "with a name for tables and settings.",
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["build"],
            "properties": {"build": {"type": "string"}, "name": {"type": "string"}},
        },
    ],
}
WRITTEN: Schema = {
    "schema": {"const": SCHEMA, "description": "Of specification and record."},
    "status": {"enum": list(STATUSES), "description": "What came of the attempt."},
    "reason": {"type": ["string", "null"], "description": "Why it is not ok."},
    "quick": {"type": "boolean", "description": "Whether the suite was shortened."},
    "isolation": {"type": "string", "description": "How the cell was run: in which process."},
    "started": {"type": "string", "format": "date-time"},
    "phases": {"type": "object", "description": "Seconds of each part of the attempt."},
    "wall_seconds": {"type": "number", "minimum": 0},
    "exit": {
        "description": "How the cell's process ended; null where it had none of its own.",
        "type": ["object", "null"],
        "properties": {
            "code": {"type": ["integer", "null"]},
            "signal": {"type": ["string", "null"]},
        },
    },
    "command": {"type": "string", "description": "Repeats this cell alone."},
    "jobs": {"type": "integer", "minimum": 1, "description": "Cells at work at once."},
    "samples_bytes": {"type": "integer", "description": "Size of `samples.npz` beside it."},
    "code": {
        "description": "Of the modules that the cell depends on; null where they are not known.",
        "type": ["object", "null"],
        "properties": {
            "roots": {"type": "array", "items": {"type": "string"}},
            "digest": {"type": "string"},
            "python": {"type": "string"},
        },
    },
}


def suite() -> Schema:
    """Of a suite file."""
    schema = _of(Suite)
    schema["$defs"] = {f"fields-{task}": _object(fields(task)) for task in PROTOCOLS}
    schema["allOf"] = [
        {"if": _task_is(task, absent=task == Suite.model_fields["task"].default),
         "then": {"properties": _grids(task)}}
        for task in PROTOCOLS
    ]  # fmt: skip
    return {"$schema": DIALECT, "title": "Suite", **schema}


def _grids(task: str) -> Schema:
    """The parts of a suite that hold field values."""
    whole: Schema = {"$ref": f"#/$defs/fields-{task}"}
    one = fields(task)
    several = {
        name: {"anyOf": [value, {"type": "array", "items": value}]} for name, value in one.items()
    }
    lists = {name: {"type": "array", "items": value} for name, value in one.items()}
    return {
        "defaults": whole,
        "quick": {  # of another name, bundles in place of an axis's
            "type": "object",
            "properties": one,
            "additionalProperties": {"type": "array", "items": whole},
        },
        "exclude": {"type": "array", "items": whole},
        "include": {"type": "array", "items": _object(several)},
        "axes": {  # of another name, an axis is made of bundles
            "type": "object",
            "properties": lists,
            "additionalProperties": {"type": "array", "items": whole},
        },
    }


def fields(task: str) -> Schema:
    """Each field of a task's cells."""
    protocol = _of(PROTOCOLS[task])["properties"]
    return {name: protocol.get(name, PART) for name in FIELDS[task]}


def record() -> Schema:
    """Of a record, `cells/<id>/<attempt>/result.json`; what is not named may be there as well."""
    schema = _of(Record)
    defined = schema["$defs"]
    schema["properties"] |= WRITTEN
    schema["required"] = sorted({*schema["required"], "schema"})
    schema["allOf"] = []
    for task, rows in ROWS.items():
        of_rows = _of(rows)
        defined |= of_rows["$defs"]
        protocol = {"$ref": f"#/$defs/{PROTOCOLS[task].__name__}"}
        then = {
            "rows": of_rows["properties"]["rows"],
            "spec": {"properties": {"protocol": protocol}},
        }
        schema["allOf"].append(
            {"if": {"properties": {"spec": _task_is(task)}}, "then": {"properties": then}}
        )
    return {"$schema": DIALECT, "title": "Record", **schema}


SCHEMAS = {"suite": suite, "record": record}


def _task_is(task: str, *, absent: bool = False) -> Schema:
    """Holds for what names a task, or names none where that means the same."""
    test: Schema = {"properties": {"task": {"const": task}}}
    return test if absent else test | {"required": ["task"]}


def _object(properties: Schema) -> Schema:
    """A mapping of these keys and no others."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _of(model: type[BaseModel]) -> Schema:
    """A model's schema, each field with what its docstring says."""
    schema = model.model_json_schema()
    _describe(schema, model)
    for inner in DESCRIBED:
        if inner.__name__ in schema.get("$defs", {}):
            _describe(schema["$defs"][inner.__name__], inner)
    return schema


def _describe(schema: Schema, model: type[BaseModel]) -> None:
    told = _told(model)
    for name, field in schema["properties"].items():
        if name in told:
            field.setdefault("description", told[name])


def _told(model: type[BaseModel]) -> Mapping[str, str]:
    """What docstrings say of attributes, by their names; a subclass has the last word."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        _, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
        for names, text in re.findall(
            r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE
        ):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found
