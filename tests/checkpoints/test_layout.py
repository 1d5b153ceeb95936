"""Safetensors files equal those of the safetensors package, and wrong numbers are rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pyro_resflow.checkpoints import CheckpointError, CorruptCheckpointError, Limits
from pyro_resflow.checkpoints.layout import CODES, bytes_of, pieces, read_header, read_tensor
from pyro_resflow.checkpoints.opening import reading


def tensors() -> dict[str, torch.Tensor]:
    """One of each type that torch can fill, and strange shapes."""
    made = {code: torch.arange(6).reshape(2, 3).to(dtype) for code, dtype in CODES.items()}
    return {**made, "scalar": torch.tensor(2.5), "empty": torch.zeros(3, 0, 2)}


def written(path: Path, metadata: dict[str, str], content: dict[str, torch.Tensor]) -> Path:
    path.write_bytes(b"".join(pieces(metadata, content)))
    return path


def found(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with reading(path) as file:
        header = read_header(file, Limits())
        return header.metadata, {n: read_tensor(file, header, n) for n in header.entries}


def test_the_package_reads_what_is_written(path: Path) -> None:
    written(path, {"b": "2", "a": "\\ \u00e9 \U0001f600 \n"}, tensors())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"b": "2", "a": "\\ \u00e9 \U0001f600 \n"}
    for name, tensor in load_file(path).items():
        assert tensor.dtype == tensors()[name].dtype
        assert bytes(bytes_of(tensor)) == bytes(bytes_of(tensors()[name]))


def test_what_the_package_writes_is_read(path: Path) -> None:
    save_file(tensors(), path, {"b": "2", "a": "1"})
    metadata, content = found(path)
    assert metadata == {"b": "2", "a": "1"}
    assert content.keys() == tensors().keys()
    for name, tensor in content.items():
        assert tensor.dtype == tensors()[name].dtype
        assert bytes(bytes_of(tensor)) == bytes(bytes_of(tensors()[name]))


def test_values_are_aligned(path: Path) -> None:
    written(path, {}, tensors())
    with reading(path) as file:
        header = read_header(file, Limits())
    for entry in header.entries.values():
        assert (header.start + entry.start) % entry.dtype.itemsize == 0


def test_the_order_of_what_is_written_has_no_part_in_it() -> None:
    one, other = tensors(), dict(reversed(tensors().items()))
    first = b"".join(pieces({"a": "1", "b": "2"}, one))
    assert b"".join(pieces({"b": "2", "a": "1"}, other)) == first


def test_other_types_are_refused(path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"'x' has dtype torch.complex128, which files do not support"
    ):
        written(path, {}, {"x": torch.zeros(2, dtype=torch.complex128)})


def entry(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header["b"].update(changes)


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda h: h.update(b=3), "'b' lacks a dtype, shape or offsets"),
    (lambda h: h["b"].pop("shape"), "'b' lacks a dtype, shape or offsets"),
    (entry(more=1), "'b' lacks a dtype, shape or offsets"),
    (entry(dtype="F31"), "'b' has an unknown dtype, 'F31'"),
    (entry(dtype=["F32"]), "'b' has an unknown dtype, .'F32'."),
    (entry(shape=3), "'b' has an invalid shape, 3"),
    (entry(shape=[True]), "'b' has an invalid shape, .True."),
    (entry(shape=[-1]), "'b' has an invalid shape, .-1."),
    (entry(shape=[2**63]), "'b' has an invalid shape, .9223372036854775808."),
    (entry(shape=[1] * 65), "'b' has an invalid shape, .1, 1, "),
    (entry(shape=[1.0]), "'b' has an invalid shape, .1.0."),
    (entry(shape=[2**62, 2**62]), "size of the tensor 'b' does not match shape"),
    (entry(shape=[0, 2**62]), "size of the tensor 'b' does not match shape"),
    (entry(data_offsets=[8]), "'b' has invalid offsets, .8."),
    (entry(data_offsets=[0, 12]), "values of '.' do not follow"),
    (entry(data_offsets=[9, 21]), "values of 'b' do not follow"),
    (entry(data_offsets=[20, 8]), "size of the tensor 'b' does not match shape .3,."),
    (lambda h: h.pop("b"), "expected 8 bytes of values, got 20"),
    (lambda h: h.update(c=h["b"]), "values of 'c' do not follow"),
    (lambda h: h.update(__metadata__=3), "metadata are not strings"),
    (lambda h: h.update(__metadata__={"a": 3}), "metadata are not strings"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_headers_that_contradict_themselves_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str, path: Path
) -> None:
    data = written(path, {}, {"a": torch.zeros(2), "b": torch.zeros(3)}).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    start = json.dumps(header).encode()
    path.write_bytes(len(start).to_bytes(8, "little") + start + data[8 + length :])
    with pytest.raises(
        CorruptCheckpointError, match=f"not a complete safetensors file.*{message}"
    ):
        found(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\xff\xff", "ends inside its header"),
        (b"\x03\x00\x00\x00\x00\x00\x00\x00[1]", "its header is not a JSON object"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00\xff\xff", "not valid JSON"),
        (b"\x90\x01\x00\x00\x00\x00\x00\x00" + b"[" * 400, "not valid JSON"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff{}", "ends inside its header"),
    ],
)
def test_other_headers_are_refused(start: bytes, message: str, path: Path) -> None:
    path.write_bytes(start)
    with pytest.raises(
        CorruptCheckpointError, match=f"not a complete safetensors file.*{message}"
    ):
        found(path)


def test_a_truth_value_is_0_or_1(path: Path) -> None:
    data = bytearray(written(path, {}, {"a": torch.tensor([True, False])}).read_bytes())
    data[-1] = 2
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="boolean in it is neither 0 nor 1"):
        found(path)


def test_a_file_that_becomes_shorter_while_it_is_read(path: Path) -> None:
    written(path, {}, {"a": torch.zeros(100_000)})
    with reading(path) as file:
        header = read_header(file, Limits())
        with path.open("r+b") as other:
            other.truncate(1000)
        with pytest.raises(CorruptCheckpointError, match="became shorter while it was read"):
            read_tensor(file, header, "a")
