"""Loading without the libraries' progress bars and notices: each cell of a suite loads a world."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Errors only, from diffusers and transformers, for as long as the block lasts."""
    from diffusers.utils import logging as diffusers  # noqa: PLC0415 - slow
    from transformers.utils import logging as transformers  # noqa: PLC0415

    before = [
        (library, library.get_verbosity(), library.is_progress_bar_enabled())
        for library in (diffusers, transformers)
    ]
    for library, _, _ in before:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bar in before:
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
