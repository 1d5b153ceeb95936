"""How checkpoints are written: whole or not at all."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from examples.images.errors import SetupError


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
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


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
