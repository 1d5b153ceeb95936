"""Errors that end a run early."""

from pathlib import Path


class EarlyEnd(Exception):  # noqa: N818 an interruption is not an error
    """A run has ended early.

    Args:
        message: The message for the user.
        checkpoint: The checkpoint to resume from, if there is one.
    """

    def __init__(self, message: str, checkpoint: str | Path | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class SetupError(EarlyEnd, ValueError):
    """A setting or a file does not allow the run; raised before the first training step."""


class DivergedError(EarlyEnd, RuntimeError):
    """Training has diverged: the loss is not finite."""


class StorageError(EarlyEnd, OSError):
    """A checkpoint could not be written."""


class Interrupted(EarlyEnd):
    """A signal has stopped the run, and its state is saved.

    Args:
        message: The message for the user.
        checkpoint: The checkpoint with the state.
        signal_number: The signal.
    """

    def __init__(self, message: str, checkpoint: str | Path | None, signal_number: int) -> None:
        super().__init__(message, checkpoint)
        self.exit_code = 128 + signal_number
