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
