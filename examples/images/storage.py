"""Checkpoints as files: written atomically, and checked when read."""

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

READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)
"""Errors of reading a file that is damaged, unreadable or not a zip file."""

REQUIRED_ENTRIES = {"state_dict", "global_step", "pytorch-lightning_version"}
"""Entries that every checkpoint of Lightning has."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint to a new file beside the old one, then renames it.

    If the process ends while it writes, the old file stays complete. Lightning writes to the
    system's temporary folder instead, from which a move to another disk is not atomic.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; to a remote address, as Lightning does.

        Args:
            checkpoint: The checkpoint.
            path: The file; its folder is created if it is missing.
            storage_options: Not used.

        Raises:
            StorageError: If writing fails, for instance because the disk is full.
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
            # When a disk is full, torch raises a RuntimeError after the OSError.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise StorageError(
                f"the checkpoint {str(path)!r} cannot be written ({reason.strerror}); an earlier "
                "one there is unchanged"
            ) from error


def read_checkpoint(path: Path, setting: str = "ckpt_path") -> dict[str, Any]:
    """Read a checkpoint and verify its checksums; tensors stay in the file until they are used.

    torch does not verify the checksums: a changed byte would silently change a weight.

    Args:
        path: The file.
        setting: The setting that names it.

    Raises:
        SetupError: If the file is damaged or not a checkpoint of a run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged!r} does not match")
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except READ_ERRORS as error:
        raise SetupError(
            f"{setting} {str(path)!r} is damaged or not a checkpoint of a run ({error}); name "
            "another one"
        ) from error
    missing = (
        REQUIRED_ENTRIES - set(checkpoint) if isinstance(checkpoint, dict) else REQUIRED_ENTRIES
    )
    if missing:
        raise SetupError(
            f"{setting} {str(path)!r} is not a checkpoint of a run: it has no "
            f"{', '.join(sorted(missing))}; name another one"
        )
    return checkpoint


def checkpoint_folder(trainer: Trainer) -> Path:
    """Return the folder of a run's checkpoints; a broadcast, so all processes must call it."""
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def check_writable(setting: str, folder: Path) -> None:
    """Create a folder, and raise a `SetupError` if files cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SetupError(
            f"{setting} {str(folder)!r} cannot be written to ({error.strerror}): "
            f"name another folder with --{setting}"
        ) from error
