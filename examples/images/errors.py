"""How a run ends before its time."""


class SetupError(ValueError):
    """Something that the run needs is not there; said before the first training step."""


class DivergedError(RuntimeError):
    """Training goes nowhere: the loss has stopped being a number."""


class StorageError(OSError):
    """A checkpoint cannot be written."""


class Interrupted(Exception):  # noqa: N818 it is a wish, not an error
    """Somebody asked the run to stop, and its state has been saved.

    Args:
        message: What to tell them.
        signal_number: The signal by which they asked.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
