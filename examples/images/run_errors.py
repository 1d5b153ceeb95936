"""How a run ends before its time."""

from pathlib import Path


class EarlyEnd(Exception):  # noqa: N818 one of its kinds is a wish
    """A run ends before its time.

    Args:
        message: What to tell whoever started it.
        checkpoint: What it can be resumed from, if there is something.
    """

    def __init__(self, message: str, checkpoint: str | Path | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class SetupError(EarlyEnd, ValueError):
    """Something that the run needs is not there; said before the first training step."""


class DivergedError(EarlyEnd, RuntimeError):
    """Training goes nowhere: the loss has stopped being a number."""


class StorageError(EarlyEnd, OSError):
    """A checkpoint cannot be written."""


class Interrupted(EarlyEnd):
    """Somebody asked the run to stop, and its state has been saved.

    Args:
        message: What to tell them.
        checkpoint: Where the state is.
        signal_number: The signal by which they asked.
    """

    def __init__(self, message: str, checkpoint: str | Path | None, signal_number: int) -> None:
        super().__init__(message, checkpoint)
        self.exit_code = 128 + signal_number
