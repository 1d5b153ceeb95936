"""Flows in files: ours, as safetensors, and the reference implementation's."""

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
from .flows import load, save
from .information import Information, info
from .limits import Limits
from .reference import load_reference

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
