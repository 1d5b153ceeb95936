"""Open a file once, and raise every error about it with its path."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import torch

from .errors import CheckpointError, CorruptCheckpointError
from .texts import printable, shown_path

PathLike = str | os.PathLike[str]


@contextmanager
def reading(path: PathLike) -> Iterator[BinaryIO]:
    """An open file. All reads use the same handle, even if another file takes its place meanwhile.

    Args:
        path: the file.

    Raises:
        CheckpointError: for any error inside that the file's contents cause; its message begins
            with the path.
        OSError: if the file does not exist or cannot be read.
    """
    with _errors_name(path), _opened(path) as file:
        yield file


@contextmanager
def _errors_name(path: PathLike) -> Iterator[None]:
    """Add the path to errors raised inside, once, and report unforeseen ones as damage."""
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
    except (Warning, torch.cuda.OutOfMemoryError):  # the file does not cause these
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {printable(str(error))}"
        damaged = CorruptCheckpointError(f"damaged or unreadable ({reason}).")
        raise _named(damaged, path) from error


def size_of(file: BinaryIO) -> int:
    """The size of an open file, in bytes."""
    return os.fstat(file.fileno()).st_size


def _named(error: CheckpointError, path: PathLike) -> CheckpointError:
    named = type(error)(f"{shown_path(path)}: {error}")
    named.path = os.fspath(path)
    return named


@contextmanager
def _opened(path: PathLike) -> Iterator[BinaryIO]:
    with open(os.fspath(path), "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CorruptCheckpointError("it is not a regular file.")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    """Open a file without blocking, as a pipe without a writer would."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
