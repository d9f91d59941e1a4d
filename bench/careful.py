"""Bad input to a command as one sentence and exit code 2."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not str(error):  # click ends a closed pipe
            raise
        raise click.UsageError(_said(error)) from error


def _said(error: OSError) -> str:
    """Which file could not be read or written, and why; of what names none, its own words."""
    if error.filename is None:
        return error.strerror or str(error)
    return f"expected to read or write {error.filename}, got {error.strerror or error}"


def careful(command: F) -> F:
    """A command whose ValueErrors and files out of reach are for the user to read."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _plainly():
            return command(*args, **kwargs)

    return wrapped  # type: ignore[return-value]
