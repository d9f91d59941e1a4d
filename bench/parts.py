"""Parts of a suite as written, resolved: every setting, and the digests of users' files."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from bench.cell import label
from bench.part import Part
from bench.resolve import Build, complete, resolve, source_digest

MADE = {  # of kinds that are built alike in all tasks: what a build takes, and what it makes
    "reward": (("world",), "a Reward"),
    "backbone": (("world",), "a Backbone"),
    "prompts": (("world",), "a list of prompts"),
    "judge": (("world",), "a judge"),
    "metric": ((), "a Metric"),
    "algorithm": ((), "an Algorithm or Trainer"),
    "world": ((), "a World"),
}
PLACED = ("backbone", "prompts")  # a world's mapping may name files for these


def part(value: Any, registry: Mapping[str, Build], kind: str) -> Part:
    """A reward, estimator, algorithm, judge or metric of a suite.

    Raises:
        ValueError: if it does not resolve.
    """
    entry = _entry(value, kind)
    return _resolved(entry, resolve(entry["build"], registry, kind), registry, kind)


def world_part(value: Any, registry: Mapping[str, Build]) -> Part:
    """A world, with a generator or a list of prompts that a user's file puts into it.

    Raises:
        ValueError: if any of them does not resolve.
    """
    from bench.datasets import PROMPTS  # noqa: PLC0415 - imports torch
    from bench.prompts import build_of, listed  # noqa: PLC0415

    entry, parts = _entry(value, "world"), {}
    if "backbone" in entry:
        parts["backbone"] = part(entry.pop("backbone"), {}, "backbone")
    if isinstance(entry.get("prompts"), Mapping) or listed(entry.get("prompts")):
        of = _entry(entry.pop("prompts"), "prompts")
        parts["prompts"] = _resolved(of, build_of(of["build"]), PROMPTS, "prompts")
    found = _resolved(entry, resolve(entry["build"], registry, "world"), registry, "world")
    return found.model_copy(update={"parts": parts})


def parts_of(values: Any, kind: str) -> list[Part]:
    """Judges or metrics of users' files, told apart by the names that tables call them.

    Raises:
        ValueError: for no list, or two of one name.
    """
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
        raise ValueError(f"expected a list of {kind}s, got {values!r}")
    found = [part(value, {}, kind) for value in values]
    names = [label(value) for value in values]
    if len(set(names)) < len(names):
        raise ValueError(f"expected {kind}s of different names, got {', '.join(names)}")
    return [one.model_copy(update={"name": name}) for one, name in zip(found, names, strict=True)]


def written(text: str) -> dict[str, Any]:
    """A world as a command line names it, `shapes,generator=small`, as a suite's mapping.

    Raises:
        ValueError: for a setting without a value.
    """
    build, *given = text.split(",")
    entry: dict[str, Any] = {"build": build, "name": text} if given else {"build": build}
    for setting in given:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"expected WORLD,SETTING=VALUE, got {text!r}")
        try:
            entry[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"expected WORLD,SETTING=VALUE, got {text!r}") from None
    return entry


def _entry(value: Any, kind: str) -> dict[str, Any]:
    if kind == "world" and isinstance(value, str):
        return written(value)
    entry = dict(value) if isinstance(value, Mapping) else {"build": value}
    if not isinstance(entry.get("build"), str):
        raise ValueError(f"expected {kind} as a name or a mapping with `build`, got {value!r}")
    return entry


def _resolved(
    entry: Mapping[str, Any], build: Build, registry: Mapping[str, Build], kind: str
) -> Part:
    given = {k: v for k, v in entry.items() if k not in {"build", "name"}}
    what = f"{kind} {label(entry)!r}"
    if "device" in given:
        raise ValueError(f"{what}: expected no device: --device says where to run")
    settings = complete(build, given, what)
    if kind in MADE and entry["build"] not in registry:
        _expect_build(build, settings, kind, label(entry))
    settings.pop("device", None)
    source = source_digest(entry["build"], registry)
    return Part(build=entry["build"], settings=settings, source=source)


def _expect_build(build: Build, settings: Mapping[str, Any], kind: str, name: str) -> None:
    """Refuse a function that cannot be the build of its kind, before every cell fails of it.

    Raises:
        ValueError: if it takes other arguments than a build of that kind.
    """
    takes, makes = MADE[kind]
    signature = inspect.signature(build)
    try:
        signature.bind(*takes, **settings)
    except TypeError:
        function = getattr(build, "__name__", type(build).__name__)
        raise ValueError(
            f"expected {name!r} to build {makes}, as build({', '.join(takes)}) does, got "
            f"{function}{signature}"
        ) from None
