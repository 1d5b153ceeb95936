"""How checkpoints are written and read: whole or not at all."""

import pickle
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from examples.atomic_files import replacing
from examples.images.run_errors import SetupError, StorageError

DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)
"""What reading a file raises that is no zip file, a damaged one, or cannot be read."""

ALWAYS_THERE = {"state_dict", "global_step", "pytorch-lightning_version"}
"""Entries of every checkpoint of Lightning's."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then puts it there in one step.

    Whatever ends the process while it writes, the file of before is still there, and whole.
    Lightning writes into the system's temporary folder, and from there to another disk takes more
    than one step.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; where `path` is an address of another computer, as Lightning does.

        Args:
            checkpoint: What to write.
            path: Where to; its folder is made if need be.
            storage_options: Not used.

        Raises:
            StorageError: If it cannot be written, for instance to a full disk.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch ends with an error of its own when a file takes no more
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise StorageError(
                f"the checkpoint {str(path)!r} cannot be written ({reason.strerror}); if there "
                "was one before, it is still there, and whole"
            ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint that is whole; its tensors stay in the file until they are used.

    torch does not compare what it reads with the checksums in the file: a changed byte would be
    another weight.

    Args:
        path: The file.

    Raises:
        SetupError: If it is damaged, or no checkpoint of a run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged!r} is another")
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except DAMAGED as error:
        raise SetupError(
            f"ckpt_path {str(path)!r} is damaged, or no checkpoint of a run ({error}): name "
            "another one"
        ) from error
    missing = ALWAYS_THERE - set(checkpoint) if isinstance(checkpoint, dict) else ALWAYS_THERE
    if missing:
        raise SetupError(
            f"ckpt_path {str(path)!r} is no checkpoint of a run: it holds no "
            f"{', '.join(sorted(missing))}"
        )
    return checkpoint


def checkpoint_folder(trainer: Trainer) -> Path:
    """Return the folder of a run's checkpoints; all processes must ask, for it is broadcast."""
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def check_writable(setting: str, folder: Path) -> None:
    """Make a folder and raise a `SetupError` if files cannot be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SetupError(
            f"{setting} {str(folder)!r} cannot be written to ({error.strerror}): "
            f"name another folder with --{setting}"
        ) from error
