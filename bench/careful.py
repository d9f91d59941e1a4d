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
    except (ValueError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from error


def careful(command: F) -> F:
    """A command whose ValueErrors and missing files are for the user to read."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _plainly():
            return command(*args, **kwargs)

    return wrapped  # type: ignore[return-value]
