"""What can be wrong with a checkpoint: each a ValueError that says what and where."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A flow cannot be written to a file, or a file holds no flow that can be made.

    Attributes:
        path: the file, once it is known; the message begins with it.
    """

    path: str | None = None


class NotRebuildableError(CheckpointError):
    """Something in a flow cannot be written so that it can be made again from the file."""


class CorruptCheckpointError(CheckpointError):
    """A file is truncated, damaged or no checkpoint at all."""


class LimitError(CorruptCheckpointError):
    """A file asks for more than its reader allows, see :class:`Limits`."""


class UnknownVersionError(CheckpointError):
    """A file is of a format version that this release cannot read."""


class UnknownClassError(CheckpointError):
    """A file needs a class that it was not given, or that no file may name."""


class TensorMismatchError(CheckpointError):
    """The tensors of a file are not those of the flow that it describes."""


class UnsafePickleError(CheckpointError):
    """A pickle asks for something beside tensors and the reference implementation's classes."""


class UnsupportedFlowError(CheckpointError):
    """A file of the reference implementation describes a flow that is not built here."""


class ContractionWarning(UserWarning):
    """A network that was loaded is not a contraction, as far as can be told."""


class NoChecksumWarning(UserWarning):
    """A file was loaded whose format has no checksums: damage may have gone unnoticed."""
