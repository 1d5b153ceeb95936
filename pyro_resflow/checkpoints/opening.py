"""A file is opened once, and whatever is wrong with it is an error that names it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import torch

from .errors import CheckpointError, CorruptCheckpointError
from .texts import printable, shown_path

Path_ = str | os.PathLike[str]


@contextmanager
def reading(path: Path_) -> Iterator[BinaryIO]:
    """An open file; all that is read inside comes from it, even while another takes its place.

    Args:
        path: the file.

    Raises:
        CheckpointError: for any error inside that comes from what the file holds; its message
            begins with the path.
        OSError: if there is no such file, or it cannot be read.
    """
    with about(path), _opened(path) as file:
        yield file


@contextmanager
def about(path: Path_) -> Iterator[None]:
    """Errors inside name the file, once, and what no check has foreseen is called damage."""
    try:
        yield
    except CheckpointError as error:
        if error.path is not None:
            raise
        raise _named(error, path) from error.__cause__
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    except (Warning, torch.cuda.OutOfMemoryError):  # which are not the file's
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {printable(str(error))}"
        damaged = CorruptCheckpointError(f"damaged, or no file that can be read ({what}).")
        raise _named(damaged, path) from error


def size_of(file: BinaryIO) -> int:
    """The size of an open file, in bytes."""
    return os.fstat(file.fileno()).st_size


def _named(error: CheckpointError, path: Path_) -> CheckpointError:
    named = type(error)(f"{shown_path(path)}: {error}")
    named.path = os.fspath(path)
    return named


@contextmanager
def _opened(path: Path_) -> Iterator[BinaryIO]:
    with open(os.fspath(path), "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CorruptCheckpointError("it is no regular file.")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to would otherwise be waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
