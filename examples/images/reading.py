"""What is said of a file that cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager

from examples.images.run_errors import SetupError


@contextmanager
def reading(setting: str, what: object) -> Iterator[None]:
    """Whatever goes wrong in the block becomes a `SetupError` that names the file.

    Decoders of pictures, archives and arrays raise errors of a dozen kinds for damaged files.

    Args:
        setting: What the user has given that leads to the file.
        what: The file, or the part of one.
    """
    try:
        yield
    except SetupError:
        raise
    except Exception as error:
        said = str(error) or type(error).__name__
        raise SetupError(f"{setting}: {what} cannot be read: {said}") from error
