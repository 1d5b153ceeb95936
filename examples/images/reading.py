"""Errors for files that cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager

from examples.images.run_errors import SetupError


@contextmanager
def reading(setting: str, file: object) -> Iterator[None]:
    """Turn any error in the block into a `SetupError` that names the file.

    For damaged files, decoders of pictures, archives and arrays raise errors of a dozen classes.

    Args:
        setting: The setting that leads to the file.
        file: The file, or a part of it.
    """
    try:
        yield
    except SetupError:
        raise
    except Exception as error:
        message = str(error) or type(error).__name__
        raise SetupError(f"{setting}: {file} cannot be read: {message}") from error
