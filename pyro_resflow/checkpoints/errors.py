"""Errors and warnings of checkpoints; each error is a ValueError that names the cause."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A flow cannot be written to a file, or no flow can be built from a file.

    Attributes:
        path: the file, once it is known; the message begins with it.
    """

    path: str | None = None


class NotRebuildableError(CheckpointError):
    """Part of a flow cannot be rebuilt from a file, so it is not written."""


class CorruptCheckpointError(CheckpointError):
    """A file is truncated, damaged or not a checkpoint."""


class LimitError(CorruptCheckpointError):
    """A file asks for more than its reader allows, see :class:`Limits`."""


class UnknownVersionError(CheckpointError):
    """A file has a format version that this release cannot read."""


class UnknownClassError(CheckpointError):
    """A file needs a class that was not passed to ``load``, or that no file may name."""


class TensorMismatchError(CheckpointError):
    """The tensors of a file do not match the flow that it describes."""


class UnsafePickleError(CheckpointError):
    """A pickle names something other than tensors and the reference implementation's classes."""


class UnsupportedFlowError(CheckpointError):
    """A file of the reference implementation describes a flow that this package does not have."""


class ContractionWarning(UserWarning):
    """A loaded network could not be verified to be a contraction."""


class NoChecksumWarning(UserWarning):
    """The format of a loaded file has no checksums: damage may have gone unnoticed."""
