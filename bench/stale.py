"""Which code a cell depends on: a record of other code is stale, neither reused nor deleted.

From the modules that measure a cell - its task, and the builds of its world, reward, estimator and
algorithm - imports are followed within this project, and what they say is digested without
comments, docstrings and layout.  Registries are not followed: a new estimator makes no other's
record stale.  Nor are what names a cell, which its identity covers, and what only shows results.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROJECT = ("stitchvm", "baselines", "bench")
REGISTRIES = ("baselines", "bench.tasks", "bench.worlds")
IN_THE_IDENTITY = (
    "bench.cell",
    "bench.part",
    "bench.parts",
    "bench.plan",
    "bench.prompts",
    "bench.protocols",
    "bench.resolve",
    "bench.suite",
)
APART = {*REGISTRIES, *IN_THE_IDENTITY, "bench", "bench.environment", "bench.rows", "bench.store"}


def code(roots: Iterable[str]) -> dict[str, Any]:
    """What a record keeps: the modules it starts from, their digest and what digested it."""
    names = sorted(set(roots) - APART)
    return {"roots": names, "digest": _digest(tuple(names)), "python": _python()}


def stale(record: Mapping[str, Any]) -> bool:
    """Whether a record's cell would be measured by other code today; False where unknown."""
    kept = record.get("code")
    if not isinstance(kept, dict) or kept.get("python") != _python():
        return False  # an older record, or one that another Python's syntax tree digested
    return kept["digest"] != _digest(tuple(kept["roots"]))


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@cache
def _digest(roots: tuple[str, ...]) -> str:
    found: dict[str, str] = {}
    left = list(roots)
    while left:
        name = left.pop()
        if name not in found:
            found[name] = _said(name)
            left += _imports(name)
    text = "\n".join(f"{name} {said}" for name, said in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _tree(name: str) -> ast.Module | None:
    """A module's syntax without docstrings; None for what is no module of this project."""
    if name.partition(".")[0] not in PROJECT:
        return None
    path = _file(name)
    return None if path is None else _Stripped().visit(ast.parse(path.read_bytes()))


@cache
def _file(name: str) -> Path | None:
    top, *rest = name.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    for path in (folder / "__init__.py", folder.with_suffix(".py")):
        if path.is_file():
            return path
    return None


@cache
def _said(name: str) -> str:
    """Digest of a module's code."""
    tree = _tree(name)
    said = "absent" if tree is None else ast.dump(tree)
    return hashlib.sha256(said.encode()).hexdigest()


class _Stripped(ast.NodeTransformer):
    """Drops docstrings."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """A node without its docstring, if it has one."""
        super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
        return node


@cache
def _imports(name: str) -> frozenset[str]:
    """The project's modules that a module imports, anywhere in it."""
    tree = _tree(name)
    nodes = () if tree is None else ast.walk(tree)
    return frozenset(
        wanted
        for node in nodes
        for wanted in _named(node)
        if wanted.partition(".")[0] in PROJECT and wanted not in APART
    )


def _named(node: ast.AST) -> list[str]:
    """The modules that a statement imports; none of any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        found = [f"{node.module}.{alias.name}" for alias in node.names]
        return [full if _file(full) else node.module for full in found]
    return []
