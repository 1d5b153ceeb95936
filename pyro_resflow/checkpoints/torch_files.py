"""Files of ``torch.save``: zip archives, and the format before torch 1.6."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from .errors import CheckpointError, CorruptCheckpointError
from .files import Path_, about
from .unpickling import RestrictedUnpickler, Storage, StoredTensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class Memory(Protocol):
    """Where the values of a file's tensors are."""

    def read(self, storage: Storage) -> bytes:
        """The bytes of a storage."""


class TorchFile:
    """A file of ``torch.save``, whose tensors are read when they are asked for.

    It is open until the end of the ``with`` statement that it is made for.

    Args:
        path: the file.

    Attributes:
        content: what was saved, with a record in place of each tensor and a stand-in in place of
            each object.

    Raises:
        UnsafePickleError: if the pickle inside names what has no part in such a file.
        CorruptCheckpointError: if it is truncated, damaged or no such file.
        OSError: if there is no such file, or it cannot be read.
    """

    def __init__(self, path: Path_) -> None:
        self.path = path
        self._file = open(path, "rb")  # noqa: SIM115
        try:
            with about(path), _damage_is_named():
                is_zip = self._file.read(4) == b"PK\x03\x04"
                self._file.seek(0)
                read = _read_zip if is_zip else _read_legacy
                self.content, self._memory = read(self._file)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tensor(self, record: StoredTensor) -> Tensor:
        """A tensor, on the CPU.

        Raises:
            CorruptCheckpointError: if the file does not hold all of it.
        """
        storage, offset, shape, stride = record
        with about(self.path), _damage_is_named():
            last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
            if min((offset, *shape, *stride)) < 0 or (0 not in shape and last >= storage.size):
                raise CorruptCheckpointError(
                    f"a tensor of shape {shape} is larger than what is stored of it."
                )
            if 0 in shape:
                return torch.empty(shape, dtype=storage.dtype)
            values = torch.frombuffer(bytearray(self._memory.read(storage)), dtype=storage.dtype)
            return values.as_strided(shape, stride, offset)


@contextmanager
def _damage_is_named() -> Iterator[None]:
    """Whatever goes wrong while reading is said to be damage."""
    try:
        yield
    except (CheckpointError, OSError):
        raise
    except Exception as error:
        raise CorruptCheckpointError(
            f"truncated, damaged or no file of torch.save ({type(error).__name__}: {error}). One "
            "of pyro_resflow.checkpoints.save is read by load."
        ) from error


class _ZipMemory:
    """The storages of a zip archive, each an entry of its own."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self.archive = archive
        self.folder = folder

    def read(self, storage: Storage) -> bytes:
        return self.archive.read(self.entry(storage))

    def entry(self, storage: Storage) -> zipfile.ZipInfo:
        """Where a storage is, if it is all there."""
        entry = _uncompressed(self.archive, f"{self.folder}data/{storage.key}")
        if entry.file_size != _bytes_of(storage):
            raise CorruptCheckpointError(
                f"{entry.filename} in it has {entry.file_size} bytes, where {_bytes_of(storage)} "
                "are expected."
            )
        return entry


def _read_zip(file: IO[bytes]) -> tuple[Any, Memory]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CorruptCheckpointError("it is no file of torch.save: it has no data.pkl.")
    folder = pickles[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in names and archive.read(_uncompressed(archive, order)) != b"little":
        raise CorruptCheckpointError("it was written by a big-endian machine: not supported.")
    with archive.open(_uncompressed(archive, pickles[0])) as stream:
        unpickler = RestrictedUnpickler(stream)
        content = unpickler.load()
    memory = _ZipMemory(archive, folder)
    for storage in unpickler.storages.values():
        memory.entry(storage)
    return content, memory


def _uncompressed(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """An entry. torch compresses none; one that is can be larger than any memory."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise CorruptCheckpointError(f"{name} in it is compressed, which torch.save never does.")
    return entry


class _LegacyMemory:
    """The storages at the end of a file, one after the other."""

    def __init__(self, file: IO[bytes], starts: Mapping[str, int]) -> None:
        self.file = file
        self.starts = starts

    def read(self, storage: Storage) -> bytes:
        self.file.seek(self.starts[storage.key])
        return self.file.read(_bytes_of(storage))


def _read_legacy(file: IO[bytes]) -> tuple[Any, Memory]:
    header = [RestrictedUnpickler(file).load() for _ in range(2)]
    if header != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
        raise CorruptCheckpointError("it is no file of torch.save that can be read.")
    if not RestrictedUnpickler(file).load()["little_endian"]:
        raise CorruptCheckpointError("it was written by a big-endian machine: not supported.")
    unpickler = RestrictedUnpickler(file)
    content = unpickler.load()
    starts = {}
    for key in RestrictedUnpickler(file).load():
        storage = unpickler.storages[key]
        (size,) = struct.unpack("<q", file.read(8))
        if size != storage.size:
            raise CorruptCheckpointError(
                f"a storage has {size} entries, where {storage.size} are expected."
            )
        starts[key] = file.tell()
        file.seek(_bytes_of(storage), os.SEEK_CUR)
    if file.tell() > os.fstat(file.fileno()).st_size:
        raise CorruptCheckpointError("truncated: its last tensors are missing.")
    return content, _LegacyMemory(file, starts)


def _bytes_of(storage: Storage) -> int:
    return storage.size * storage.dtype.itemsize
