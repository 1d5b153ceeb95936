"""A file is opened once, and errors name it once."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from pyro_resflow import residual_flow
from pyro_resflow.checkpoints import (
    CheckpointError,
    CorruptCheckpointError,
    info,
    load,
    load_reference,
    opening,
    save,
)
from pyro_resflow.checkpoints.__main__ import main
from pyro_resflow.transforms import ActNorm
from tests.checkpoints.forgeries import reference_file

READERS = [load, load_reference, info]


def opened(action: Callable[[], object], path: Path) -> int:
    """How often a file is opened, by whatever means, while something is done."""
    counted = [0]

    def hook(event: str, args: tuple[object, ...]) -> None:
        if listening and event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            counted[0] += os.fsdecode(args[0]) == str(path)

    listening = [True]
    sys.addaudithook(hook)  # there is no way to remove one
    try:
        action()
    finally:
        listening.clear()
    return counted[0]


def test_a_file_is_opened_once(saved: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.pth"
    shutil.copy(reference_file("mnist_tiny"), reference)
    # open() and the opener that it is given are heard one by one
    at_once = opened(lambda: opening._without_waiting(str(saved), os.O_RDONLY), saved)
    assert at_once == 1
    assert opened(lambda: load(saved), saved) == 2 * at_once
    assert opened(lambda: info(saved), saved) == 2 * at_once
    assert opened(lambda: load_reference(reference), reference) == 2 * at_once
    assert opened(lambda: info(reference), reference) == 2 * at_once
    convert = ["convert", str(reference), str(tmp_path / "flow")]
    assert opened(lambda: main(convert), reference) == 2 * at_once


def test_a_replacement_in_the_middle_is_not_damage(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save(residual_flow(3, 2, [8]), other)
    expected = load(saved).state_dict()
    read = Path.read_bytes(saved)
    header = opening.size_of

    def replace(file: object) -> int:
        if saved.read_bytes() == read:
            os.replace(other, saved)
        return header(file)

    with mock.patch("pyro_resflow.checkpoints.layout.size_of", replace):
        found = load(saved).state_dict()
    assert not other.exists()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load(saved).parts[0].event_dim == 1


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_regular_file_is_refused_without_waiting(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CorruptCheckpointError, match=f"{path}: it is not a regular file"):
            read(path)
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="null"):
        read(Path("a\0b"))
    with pytest.raises(TypeError):
        read(3)  # an open file's number is no path


def test_errors_of_the_disk_name_the_file(saved: Path) -> None:
    broken = OSError(errno.EIO, "Input/output error")
    with (
        mock.patch("pyro_resflow.checkpoints.layout.size_of", side_effect=broken),
        pytest.raises(OSError, match="Input/output error") as caught,
    ):
        load(saved)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(saved))


def test_errors_name_the_file_once(saved: Path, tmp_path: Path) -> None:
    save(ActNorm(2), saved)
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(reference_file("mnist_tiny").read_bytes()[:-1])
    for read, path in ((load, saved), (load, cut), (load_reference, cut), (info, cut)):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert str(caught.value).count(str(path)) == 1
        assert caught.value.path == str(path)


def test_what_nobody_has_foreseen_is_damage(saved: Path) -> None:
    for unforeseen in (KeyError("k"), RecursionError("deep"), AssertionError(), MemoryError("m")):
        with (
            mock.patch("pyro_resflow.checkpoints.files._description", side_effect=unforeseen),
            pytest.raises(CorruptCheckpointError, match=type(unforeseen).__name__),
        ):
            load(saved)
    for not_the_files in (KeyboardInterrupt(), UserWarning(), torch.cuda.OutOfMemoryError()):
        with (
            mock.patch("pyro_resflow.checkpoints.files._description", side_effect=not_the_files),
            pytest.raises(type(not_the_files)),
        ):
            load(saved)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e5m2])
def test_types_that_no_flow_has_are_refused_by_name(dtype: torch.dtype, saved: Path) -> None:
    for read, path in ((load, saved), (load_reference, reference_file("mnist_tiny"))):
        with pytest.raises(ValueError, match=rf"^dtype: expected one of .*, got {dtype}\.") as e:
            read(path, dtype=dtype)
        assert not isinstance(e.value, CheckpointError)  # the file has no part in it


def test_a_device_that_is_not_there_is_torchs_error(saved: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for read, path in ((load, saved), (load_reference, reference_file("mnist_tiny"))):
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            read(path, device="cuda")
