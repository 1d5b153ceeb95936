"""Files that are written completely or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".partial"
"""Suffix of files that are being written."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces another when the block ends.

    If the block fails, the old file stays and the new one is removed. Only a killed process leaves
    an unfinished file behind. Every unfinished file has its own name, so that two processes can
    write to one path without mixing their files.

    Args:
        path: The file to replace.

    Yields:
        The new file, open for writing.
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
    """Write a text file; if writing fails, the old file stays.

    Args:
        path: The file.
        text: Its content.
    """
    with replacing(path) as file:
        file.write(text.encode())


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files of killed processes.

    Args:
        folder: The folder; no other process may be writing to it.
    """
    for partial in folder.glob(f"*{UNFINISHED}"):
        partial.unlink(missing_ok=True)
