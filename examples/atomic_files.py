"""Files that are there whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".partial"
"""How the names of files that are being written end."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of another when the block has ended.

    What stops on the way leaves the file that was there and nothing beside it; only a process
    that is killed leaves its part behind. Each part has a name of its own, so that two processes
    that write to one place do not write into each other's file.

    Args:
        path: The file to be replaced.

    Yields:
        A file open for writing.
    """
    partial = path.with_name(secrets.token_hex(8) + UNFINISHED)
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file; what stops on the way leaves the one that was there.

    Args:
        path: The file.
        text: All that it is to hold.
    """
    with replacing(path) as file:
        file.write(text.encode())


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left in a folder that nobody else writes to.

    Args:
        folder: The folder.
    """
    for partial in folder.glob(f"*{UNFINISHED}"):
        partial.unlink(missing_ok=True)
