"""Files of torch.save: whole, truncated and damaged."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_resflow.checkpoints import CheckpointError, CorruptCheckpointError, load_reference
from pyro_resflow.checkpoints.reference.loading import Saved
from pyro_resflow.checkpoints.reference.records import Storage, StoredTensor
from tests.checkpoints.forgeries import (
    reference_file,
    rewrite,
    torch_file,
    write_old,
    zipped,
)

FORMATS: dict[str, dict[str, Any]] = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
}


@pytest.fixture(params=sorted(FORMATS))
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return FORMATS[request.param]


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
)
def test_tensors_of_every_type(
    options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    whole = (torch.arange(24).reshape(2, 3, 4) - 4).to(dtype)
    saved = {
        "whole": whole,
        "transposed": whole.transpose(0, 2),
        "view": whole[1, ::2],
        "scalar": whole[1, 2, 3],
        "empty": whole[:, :0],
        "parameter": torch.nn.Parameter(whole, requires_grad=False),
    }
    torch.save(saved, tmp_path / "t.pth", **options)
    with torch_file(tmp_path / "t.pth") as file:
        for name, expected in saved.items():
            found = file.tensor(file.content[name])
            assert found.dtype == dtype
            assert torch.equal(found, expected)


def test_files_of_torch_without_a_byteorder(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / "t.pth")
    with (
        zipfile.ZipFile(tmp_path / "t.pth") as old,
        zipfile.ZipFile(tmp_path / "u.pth", "w") as new,
    ):
        for name in old.namelist():
            if not name.endswith("byteorder"):
                new.writestr(name, old.read(name))
    with torch_file(tmp_path / "u.pth") as file:
        assert torch.equal(file.tensor(file.content["a"]), torch.arange(3))


@pytest.mark.parametrize("name", ["mnist_tiny"])
def test_a_truncated_file_is_refused_wherever_it_ends(
    options: dict[str, Any], name: str, tmp_path: Path
) -> None:
    source = reference_file(name) if not options else write_old(tmp_path / "old.pth", name)
    data = source.read_bytes()
    path = tmp_path / "short.pth"
    for end in [0, 1, 3, 4, 10, 100, *range(1000, len(data), len(data) // 20), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(CorruptCheckpointError, match=str(path)):
            load_reference(path)


def tensors_of(path: Path) -> list[torch.Tensor]:
    """All tensors of the model's state, if the file holds one."""
    with torch_file(path) as file:
        return [file.tensor(each) for each in Saved.of(file.content).state.values()]


def test_damage_is_refused_or_harmless(options: dict[str, Any], tmp_path: Path) -> None:
    source = (
        reference_file("imagenet64_tiny")
        if not options
        else write_old(tmp_path / "o", "imagenet64_tiny")
    )
    data = bytearray(source.read_bytes())
    path = tmp_path / "damaged.pth"
    messages = []
    for place in [*range(0, 100, 7), *torch.randint(len(data), (40,)).tolist()]:
        kept, data[place] = data[place], data[place] ^ 0x55
        path.write_bytes(data)
        data[place] = kept
        try:  # nothing but a refusal may come of it
            tensors_of(path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize(
    "text", [b"", b"PK\x03\x04", b"no checkpoint at all, but a text", b"\x80\x02."]
)
def test_other_files_are_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(text)
    with pytest.raises(
        CorruptCheckpointError, match=r"truncated, damaged or not a torch.save file"
    ):
        load_reference(path)


def test_pickles_of_other_things_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CorruptCheckpointError, match="not a checkpoint of the reference"):
        load_reference(tmp_path / "list.pth")
    (tmp_path / "seven.pkl").write_bytes(b"\x80\x02K\x07.\x80\x02K\x07.")
    with pytest.raises(CorruptCheckpointError, match=r"not a torch.save file"):
        load_reference(tmp_path / "seven.pkl")


def test_a_zip_without_a_pickle_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as archive:
        archive.writestr("a/version", "3")
    with pytest.raises(CorruptCheckpointError, match=r"no data\.pkl"):
        load_reference(tmp_path / "z.pth")


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(CorruptCheckpointError, match="compressed"):
        load_reference(tmp_path / "bomb.pth")


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(zipped(tmp_path / "big.pth", b"\x80\x02}."), "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(CorruptCheckpointError, match="big-endian"):
        load_reference(tmp_path / "big.pth")


def test_tensors_larger_than_their_storage_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0)}, tmp_path / "t.pth")
    with torch_file(tmp_path / "t.pth") as file:
        storage = file.content["a"].storage
        views = [
            (0, (7,), (1,)),
            (3, (4,), (1,)),
            (0, (2, 2), (5, 1)),
            (-1, (2,), (1,)),
            (0, (2,), (-1,)),
            (0, (-2,), (1,)),
        ]
        for view in views:
            with pytest.raises(CorruptCheckpointError, match="larger than its storage"):
                file.tensor(StoredTensor(storage, *view))
        with pytest.raises(CorruptCheckpointError):
            file.tensor(StoredTensor(Storage("9", torch.float32, 6), 0, (6,), (1,)))


def test_a_storage_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0)}, tmp_path / "t.pth")
    longer = rewrite(
        tmp_path / "t.pth", tmp_path / "u.pth", lambda data: data.replace(b"K\x06", b"K\x07")
    )
    with pytest.raises(CorruptCheckpointError, match="expected 28 bytes, got 24"):
        load_reference(longer)


def test_no_file_and_no_permission_are_the_systems_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_reference(tmp_path / "nowhere.pth")
    with pytest.raises(IsADirectoryError):
        load_reference(tmp_path)
