"""The error for an optional dependency that is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ImportError):
    """An optional dependency is missing; the message names the extra to install."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Wrap imports that need the extra ``name``.

    Raises:
        MissingExtraError: naming the extra, if one of the modules is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this part of pyro_resflow needs {error.name}, which is not installed: "
            f"pip install 'pyro-resflow[{name}]'"
        ) from error
