"""Replace a file atomically."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

START, END = ".pyro_resflow-", ".tmp"
"""Prefix and suffix of temporary files' names; 16 random hex digits between make them unique."""

NEW = 0o666
"""The permissions of a new file, before the process's umask."""


@contextmanager
def replaced(target: Path) -> Iterator[BinaryIO]:
    """A temporary file in the same folder that replaces the target once it is on disk.

    Temporary files that killed processes left in the folder are removed first. A process holds a
    lock on its temporary file while it runs, so that files in use are not removed.

    Args:
        target: the file to replace or create; its folder exists.

    Raises:
        OSError: if it cannot be written, for instance to a full disk; the target is unchanged.
    """
    _remove_abandoned(target.parent)
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    temporary, file = _new_temporary(target.parent, NEW if mode is None else mode)
    try:
        with file:
            yield file
            file.flush()
            if mode is not None:
                temporary.chmod(mode)  # the umask may have removed permissions
            os.fsync(file.fileno())
            if fcntl is None:  # pragma: no cover
                file.close()  # systems without fcntl cannot rename an open file
            os.replace(temporary, target)
        with suppress(OSError):  # some systems cannot open a folder
            _synchronise(target.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _new_temporary(folder: Path, mode: int) -> tuple[Path, BinaryIO]:
    """A new file with a unique name, locked."""
    while True:
        path = folder / f"{START}{os.urandom(8).hex()}{END}"
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), "wb")
        try:
            _lock(file)
        except BlockingIOError:
            pass  # another process believes it abandoned and will remove it
        except OSError:  # a file system without locks, on which no file is treated as abandoned
            return path, file
        else:
            if _is_at(file, path):
                return path, file
        file.close()


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of processes that have ended."""
    if fcntl is None:  # pragma: no cover
        return
    for path in folder.glob(f"{START}*{END}"):
        with suppress(OSError), path.open("r+b") as file:  # locking fails while another writes it
            _lock(file)
            if _is_at(file, path):
                path.unlink()


def _lock(file: BinaryIO) -> None:
    """Lock a file for this process, until it is closed.

    Raises:
        BlockingIOError: if another process has locked it.
    """
    if fcntl is not None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether a path still refers to an open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _synchronise(folder: Path) -> None:
    """Wait until a folder's directory entries are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
