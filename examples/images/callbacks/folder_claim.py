"""A lock on a run's folder: two runs that write to it would overwrite each other's steps."""

import os
import socket
from pathlib import Path
from typing import IO

from lightning import Callback, LightningModule, Trainer

from examples.atomic_files import remove_unfinished
from examples.images.run_errors import SetupError
from examples.images.storage import check_writable, checkpoint_folder

try:
    import fcntl
except ImportError:  # a system without POSIX locks, where folders are not locked
    fcntl = None

LOCK = ".lock"
"""Name of the locked file. It stays after the run: removing it would break another run's lock."""


class FolderClaim(Callback):
    """Locks the folder of the checkpoints during a fit, and removes unfinished files from it.

    A second run in the same folder is refused before it writes anything.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the folder in the first process; if that fails, all processes end."""
        if stage != "fit" or trainer.fast_dev_run:
            return
        folder = checkpoint_folder(trainer)
        check_writable("trainer.default_root_dir", folder)
        refusal = ""
        if trainer.is_global_zero:
            try:
                self._file = claim(folder)
                remove_unfinished(folder)
            except SetupError as error:
                refusal = str(error)
        refusal = trainer.strategy.broadcast(refusal)
        if refusal:
            raise SetupError(refusal)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Unlock the folder."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unlock the folder."""
        self._release()

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def claim(folder: Path) -> IO[str]:
    """Lock a folder for this process, until the returned file is closed.

    The system releases the lock when the process ends, even if it is killed.

    Args:
        folder: An existing folder.

    Returns:
        The open file that holds the lock.

    Raises:
        SetupError: If another process has locked it.
    """
    file = (folder / LOCK).open("a+")
    if fcntl is None:
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read(200)
        file.close()
        raise SetupError(
            f"trainer.default_root_dir: another run is writing to {str(folder)!r} ({holder!r}). "
            "Wait for it to end, stop it, or name another folder with "
            "--trainer.default_root_dir"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
