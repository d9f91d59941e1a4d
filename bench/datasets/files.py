"""Reading what others publish: whole files of a known form, or a sentence about what is wrong."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

SUMS = "sha256.json"  # beside fetched files: a name to its digest when it was fetched first
T = TypeVar("T")


def text(path: Path) -> str:
    """What a text file says.

    Raises:
        ValueError: if there is none, it is no text, or it changed since it was fetched.
    """
    if not path.is_file():
        raise ValueError(f"expected a file {path}, found none")
    data = path.read_bytes()
    known = recorded(path.parent).get(path.name)
    if known not in {None, sha256(data)}:
        raise ValueError(
            f"expected {path} as it was fetched, with sha256 {known}, got {sha256(data)}: fetch "
            f"it again, or take its line out of {SUMS} if the change was meant"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in {path}, got {error}") from None


def lines(path: Path) -> list[str]:
    """Lines of a text file: other characters that end lines may stand in what people wrote.

    Raises:
        ValueError: as `text` does.
    """
    return [line.removesuffix("\r") for line in text(path).split("\n")]


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def recorded(folder: Path) -> dict[str, str]:
    """Digests of the files that were fetched into a folder.

    Raises:
        ValueError: if what lies there says none.
    """
    path = folder / SUMS
    if not path.is_file():
        return {}
    return formed(TypeAdapter(dict[str, str]), _json(path.read_text("utf-8"), str(path)), path)


def parsed(path: Path, form: TypeAdapter[T]) -> T:
    """The JSON of a file.

    Raises:
        ValueError: if it is cut off, or of another form.
    """
    return formed(form, _json(text(path), str(path)), path)


def parsed_lines(path: Path, form: TypeAdapter[T]) -> list[T]:
    """The JSON of each line of a file.

    Raises:
        ValueError: naming the line that is cut off, or of another form; if there is none.
    """
    found = [
        formed(form, _json(line, f"{path}:{k}"), f"{path}:{k}")
        for k, line in enumerate(lines(path), 1)
        if line.strip()
    ]
    if not found:
        raise ValueError(f"expected lines of JSON in {path}, got none")
    return found


def table(path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[str, ...]]:
    """Columns of a CSV file, without the space around what they say.

    Raises:
        ValueError: if a column is missing, or a row is cut off.
    """
    rows = csv.reader(io.StringIO(text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        named = [name.strip() for name in next(rows, [])]
        if missing := [name for name in columns if name not in named]:
            raise ValueError(f"expected columns {', '.join(columns)} in {path}, got no {missing}")
        places = [named.index(name) for name in columns]
        for row in rows:
            if row and len(row) < len(named):
                raise ValueError(f"{path}:{rows.line_num}: expected {len(named)} cells, got {row}")
            if row:
                yield tuple(row[place].strip() for place in places)
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: expected CSV, got {error}") from None


def formed(form: TypeAdapter[T], data: Any, where: Path | str) -> T:  # noqa: ANN401 - any JSON
    """Data of a form.

    Raises:
        ValueError: naming the first place where it is of another.
    """
    try:
        return form.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {place or 'all of it'}: {first['msg']}") from None


def one_of(root: Path, names: Iterable[str]) -> str:
    """The first name that a folder has a file of.

    Raises:
        ValueError: if it has none.
    """
    names = list(names)
    found = next((name for name in names if (root / name).is_file()), None)
    if found is None:
        raise ValueError(f"expected one of {', '.join(names)} in {root}, found none")
    return found


def _json(said: str, where: str) -> Any:
    try:
        return json.loads(said)
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {error}: is the file whole?") from None
