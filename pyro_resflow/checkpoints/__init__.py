"""Save and load flows as safetensors files, and load the reference implementation's files."""

from .errors import (
    CheckpointError,
    ContractionWarning,
    CorruptCheckpointError,
    LimitError,
    NoChecksumWarning,
    NotRebuildableError,
    TensorMismatchError,
    UnknownClassError,
    UnknownVersionError,
    UnsafePickleError,
    UnsupportedFlowError,
)
from .information import Information, info
from .limits import Limits
from .reference.loading import load_reference
from .saving import load, save

__all__ = [
    "CheckpointError",
    "ContractionWarning",
    "CorruptCheckpointError",
    "Information",
    "LimitError",
    "Limits",
    "NoChecksumWarning",
    "NotRebuildableError",
    "TensorMismatchError",
    "UnknownClassError",
    "UnknownVersionError",
    "UnsafePickleError",
    "UnsupportedFlowError",
    "info",
    "load",
    "load_reference",
    "save",
]
