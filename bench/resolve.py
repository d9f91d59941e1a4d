"""Names in suites: a registry's key, `file.py:build`, or `package:build`, and their settings.

Wherever a suite takes a name, a stranger's file does as well: a suite needs nothing registered.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.cell import SUFFIXES

Build = Callable[..., Any]
USERS = "stitchbench_user_"  # begins the names of modules that users' files are


class UnknownName(ValueError):
    """A name nobody knows; the message lists the known ones and suggests the nearest.

    YAML's keys may be numbers, or nothing: they are no names either.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(f"{name}", known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        one = f"one of {', '.join(known)}" if known else "`file.py:build` or `package:build`"
        super().__init__(f"unknown {kind} {name!r}: expected {one}{hint}")


def resolve(name: str, registry: Mapping[str, Build], kind: str) -> Build:
    """The build function a name stands for.

    Args:
        name: A key of the registry, `path/to/file.py:build`, or `package.module:build`; of a file
            or package without `:build`, its `build`.
        registry: Known names.
        kind: What it is, for messages: "estimator", "world" ...

    Raises:
        UnknownName: if the name is none of these.
        ValueError: if the file or module cannot be loaded or lacks the function.
    """
    if name in registry:
        return registry[name]
    where, _, attribute = name.partition(":")
    if not (attribute or where.endswith(".py")):
        raise UnknownName(kind, name, registry)
    module = load_file(Path(where), kind) if where.endswith(".py") else _import(where, kind)
    attribute = attribute or "build"
    if not callable(getattr(module, attribute, None)):
        raise ValueError(
            f"expected a function {attribute!r} in {where}, found none to build the {kind}"
        )
    return getattr(module, attribute)


def load_file(path: Path, kind: str) -> ModuleType:
    """A module from a file of its own, loaded once per path and content.

    Raises:
        ValueError: if there is no such file, or it does not load.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"expected the file of {kind} {path.stem!r} at {path}, found none")
    identity = hashlib.sha256(f"{path}\n".encode() + path.read_bytes()).hexdigest()[:16]
    name = f"{USERS}{path.stem}_{identity}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # noqa: PT018 - a .py file has both
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if not isinstance(error, Exception):
                raise
            raise ValueError(f"expected {path} to load, got {said(error, path)}") from error
    return sys.modules[name]


def said(error: Exception, path: Path) -> str:
    """An exception in a line: what it is, and where in a file it came from."""
    steps = [
        step for step in traceback.extract_tb(error.__traceback__) if step.filename == str(path)
    ]
    line = getattr(error, "lineno", None) or (steps[-1].lineno if steps else None)
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")


def place(error: BaseException) -> str:
    """Where in a user's file an exception came from: " (my.py:14)", or "" if from none."""
    steps = [
        (Path(frame.f_code.co_filename).name, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith(USERS)
    ]
    return f" ({steps[-1][0]}:{steps[-1][1]})" if steps else ""


def _import(module: str, kind: str) -> ModuleType:
    """A module of an installed package."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"expected a module {module!r} for {kind}, found none: {error}") from None
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"expected a module {module!r} for {kind}, got {why}") from error


def source_digest(name: str, registry: Mapping[str, Build]) -> str | None:
    """Digest of a user's file or module: a changed one is another cell.  None for what is ours."""
    if name in registry:
        return None
    where = name.partition(":")[0]
    if Path(where).suffix in SUFFIXES:
        file = Path(where).expanduser()
    else:
        found = importlib.util.find_spec(where)
        if found is None or found.origin is None or not Path(found.origin).is_file():
            return None
        file = Path(found.origin)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def weights_of(build: Build) -> Callable[..., str] | None:
    """The function `weights` beside a build, or None.

    It takes the same arguments, but of the reward the name, and returns the digest of the trained
    weights that are built from.
    """
    return getattr(sys.modules.get(build.__module__), "weights", None)


def complete(build: Build, given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """All settings of a build: the given ones, checked, and its own defaults.

    Settings are the keyword-only parameters.

    Args:
        build: The function.
        given: Settings from a suite.
        what: Whose they are, for messages.

    Raises:
        UnknownName: for a setting the build does not have.
        ValueError: for a value of the wrong type, or a setting that is missing.
    """
    parameters = _signature(build).parameters
    known = {p.name: p for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    for name in given:
        if name in parameters and name not in known:
            raise ValueError(f"{what}: expected {name!r} as a keyword-only parameter, after a *")
        if name not in known:
            raise UnknownName(f"setting of {what}", name, known)
    settings = {}
    for name, parameter in known.items():
        if name in given:
            settings[name] = _checked(given[name], parameter.annotation, f"{what}: {name}")
        elif parameter.default is parameter.empty:
            raise ValueError(f"{what}: expected a setting {name!r}, got none")
        else:
            settings[name] = parameter.default
    return settings


@cache
def _signature(build: Build) -> inspect.Signature:
    return inspect.signature(build)


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _checked(value: Any, annotation: Any, what: str) -> Any:
    """A value of the annotated type.

    Raises:
        ValueError: saying what was expected and what came.
    """
    if annotation is inspect.Parameter.empty:
        return value
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"{what}: {message[0].lower()}{message[1:]}, got {value!r}") from None
