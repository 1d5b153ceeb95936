"""Damaged and foreign files raise errors."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pyro_resflow import checkpoints
from pyro_resflow.checkpoints import (
    CheckpointError,
    CorruptCheckpointError,
    TensorMismatchError,
    UnknownClassError,
    UnknownVersionError,
    files,
    load,
    save,
)
from pyro_resflow.transforms import ActNorm
from tests.checkpoints.forgeries import reference_file
from tests.checkpoints.roundtrips import parts_of

ROOT = Path(__file__).parents[2]


def test_a_truncated_file_is_refused_wherever_it_ends(saved: Path) -> None:
    data = saved.read_bytes()
    for end in [*range(0, 200, 9), *range(200, len(data), 97), len(data) - 1]:
        saved.write_bytes(data[:end])
        with pytest.raises(CorruptCheckpointError, match=f"{saved}: truncated or damaged"):
            load(saved)
    saved.write_bytes(data + b"\0")
    with pytest.raises(CorruptCheckpointError, match="truncated or damaged"):
        load(saved)


def test_every_changed_byte_is_noticed_or_without_effect(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    expected = load(saved).state_dict()
    refused = 0
    places = torch.randperm(len(data))[:400].tolist()
    for place in places:
        for flipped in (0x01, 0x80):
            data[place] ^= flipped
            saved.write_bytes(data)
            data[place] ^= flipped
            try:
                found = load(saved, certify=False).state_dict()
            except CheckpointError as error:
                assert str(error).startswith(f"{saved}: ")  # noqa: PT017
                refused += 1
            else:
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert refused > 750


def test_a_damaged_tensor_is_named(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=r"damaged: the tensor '\S+' does not match"):
        load(saved)


def changed(
    saved: Path,
    description: Callable[[dict[str, Any]], Any] = lambda d: None,
    tensors: Callable[[dict[str, torch.Tensor]], Any] = lambda t: None,
) -> Path:
    """A file that says of itself that it is whole, after a change."""
    metadata, state = parts_of(saved)
    content = json.loads(metadata["pyro_resflow"])
    tensors(state)
    content["checksums"] = {name: files.checksum(each) for name, each in state.items()}
    description(content)
    text = json.dumps(content)
    checked = {"pyro_resflow": text, "pyro_resflow.crc32": str(zlib.crc32(text.encode()))}
    save_file(state, saved, checked)
    return saved


def test_a_file_without_a_change_is_not_refused(saved: Path) -> None:
    load(changed(saved))


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], True, 1.0])
def test_an_unknown_version_is_refused(version: object, saved: Path) -> None:
    changed(saved, lambda d: d.update(version=version))
    with pytest.raises(UnknownVersionError, match=r"version .* reads up to 1\. Update"):
        load(saved)


@pytest.mark.parametrize("part", ["flow", "settings", "training", "notes", "torch", "checksums"])
def test_a_description_without_a_part_is_refused(part: str, saved: Path) -> None:
    changed(saved, lambda d: d.pop(part))
    with pytest.raises(CorruptCheckpointError, match=f"{saved}: its description has no '{part}'"):
        load(saved)


def test_missing_surplus_and_misshapen_tensors_are_refused(saved: Path) -> None:
    data = saved.read_bytes()

    def refused(change: Callable[[dict[str, torch.Tensor]], Any], message: str) -> None:
        saved.write_bytes(data)
        changed(saved, tensors=change)
        with pytest.raises(TensorMismatchError, match=message):
            load(saved)

    refused(lambda t: t.pop("0.net.0.weight"), r"flow\.safetensors: .*missing '0\.net\.0\.weight'")
    refused(lambda t: t.update(more=torch.zeros(1)), "surplus 'more'")
    refused(
        lambda t: t.update({"0.net.0.bias": torch.zeros(5)}),
        r"'0\.net\.0\.bias' has shape \(5,\), expected \(4,\)",
    )
    # a single number would be broadcast
    refused(lambda t: t.update({"0.net.0.bias": torch.zeros(())}), r"shape \(\), expected \(4,\)")


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint64],
)
def test_types_that_no_parameter_has_are_named(dtype: torch.dtype, saved: Path) -> None:
    changed(saved, tensors=lambda t: t.update({"0.net.0.bias": torch.zeros(4).to(dtype)}))
    message = rf"'0\.net\.0\.bias' has dtype {dtype}, expected torch\.float32\."
    with pytest.raises(TensorMismatchError, match=message):
        load(saved)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_flag_is_no_integer(dtype: torch.dtype, saved: Path) -> None:
    save(ActNorm(2), saved)
    changed(saved, tensors=lambda t: t.update(initialized=torch.ones((), dtype=dtype)))
    with pytest.raises(
        TensorMismatchError, match=f"'initialized' has dtype {dtype}, expected torch.float32"
    ):
        load(saved)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_that_a_flow_can_be_converted_to_are_loaded(dtype: torch.dtype, saved: Path) -> None:
    changed(saved, tensors=lambda t: t.update({"0.net.0.bias": torch.zeros(4).to(dtype)}))
    assert load(saved, certify=False).parts[0].net[0].bias.dtype == dtype


def test_notes_that_are_no_texts_are_refused(saved: Path) -> None:
    for notes in ({"a": 1}, {"a": ["b"]}, {"a": None}):
        changed(saved, lambda d, notes=notes: d.update(notes=notes))
        for read in (load, checkpoints.info):
            with pytest.raises(CorruptCheckpointError, match="notes are not strings"):
                read(saved)


def test_a_setting_of_another_kind_is_refused(saved: Path) -> None:
    changed(saved, lambda d: d.update(settings={"0.net.0.norm": {"coefficient": "many"}}))
    with pytest.raises(CorruptCheckpointError, match=r"damaged or unreadable"):
        load(saved)


def test_several_problems_are_named_at_once(saved: Path) -> None:
    changed(saved, tensors=lambda t: t.update(more=t.pop("0.net.0.weight")))
    with pytest.raises(TensorMismatchError, match=r"missing '0\.net\.0\.weight'; surplus 'more'"):
        load(saved)


def test_a_list_of_tensors_that_is_not_the_files_is_refused(saved: Path) -> None:
    changed(saved, lambda d: d["checksums"].pop("0.net.0.weight"))
    with pytest.raises(CorruptCheckpointError, match=r"list of tensors.*0\.net\.0\.weight"):
        load(saved)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "posix.system",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "torch.Tensor",
        "pyro.module",
        "nn.Sequential",
        "nn.activations",
        "nn.update_norms",
        "nn.__loader__",
        "transforms.residual",
        "transforms.NoisyEnergyError",
        "transforms.base.OnePassTransform",
        "transforms.Transform",
        "guides.AutoResidualFlow",
        "hybrid.ImageFlow",
        "hybrid.feature_shapes",
        "flows.Rebuildable",
        "checkpoints.load",
        "flows.NetworkRecipe",
        "interop.zuko.ZukoTransform",
        "extras.extra",
        "rebuilding.Rebuildable",
        "",
        ".",
        "nn.",
        "nn",
        "logdet..Exact",
        "own.",
        "logdet.Tail",
    ],
)
def test_no_other_class_can_be_named(name: str, saved: Path) -> None:
    changed(saved, lambda d: d.update(flow={"class": name, "arguments": {}}))
    with pytest.raises(
        UnknownClassError, match=r"not a class that a file may name|classes of your own"
    ):
        load(saved)
    changed(saved, lambda d: d.update(flow={"type": name}))
    with pytest.raises(UnknownClassError):
        load(saved)


def made(**arguments: Any) -> dict[str, Any]:
    """What describes an ActNorm."""
    return {"class": "transforms.ActNorm", "arguments": arguments}


NODES: list[tuple[Any, str]] = [
    ({}, r"flow: expected one kind of entry, got \[\]"),
    (
        {"class": "nn.ELU", "type": "nn.ELU"},
        r"expected one kind of entry, got \['class', 'type'\]",
    ),
    ({"class": "nn.ELU"}, "flow: the entry has no valid 'arguments'"),
    ({"class": "nn.ELU", "arguments": []}, "flow: the entry has no valid 'arguments'"),
    ({**made(), "positional": {}}, "flow: the entry has no valid 'positional'"),
    ({**made(), "more": 1}, r"an entry of kind 'class' has no \['more'\]"),
    ({"class": "nn.ELU", "arguments": {"unknown": 1}}, "flow: TypeError"),
    ({"class": ["nn.ELU"], "arguments": {}}, r"\['nn.ELU'\] is not a valid 'class'"),
    (made(num_features=-1), "flow: ValueError, ActNorm: num_features"),
    (made(num_features="many"), "flow: TypeError, ActNorm: num_features"),
    (made(num_features=10**40), "num_features: expected a number, got 1000"),
    (
        made(num_features=10**4000),
        "num_features: expected a number, got an integer of 13,288 bits",
    ),
    (made(num_features={"ref": 7}), "num_features: the entry refers to object 7, which does not"),
    (made(num_features={"ref": [7]}), r"num_features: \[7\] is not a valid 'ref'"),
    (made(num_features={"tensor": "#9", "parameter": False}), "num_features: KeyError"),
    (made(num_features={"tensor": "#9"}), "num_features: the entry has no valid 'parameter'"),
    (made(num_features={"dtype": "load"}), "num_features: 'load' is not a valid 'dtype'"),
    (made(num_features={"float": "1e9"}), "num_features: '1e9' is not a valid 'float'"),
    (
        made(num_features={"dict": [[1]]}),
        r"num_features: \[<builtins.list>\] is not a valid 'dict'",
    ),
    (made(num_features={"dict": [[[], 1]]}), "num_features: TypeError"),
    (made(**{"a b": 1}), "'a b' is not a valid argument name"),
    (made(**{"a" * 10_000: 1}), "is not a valid argument name"),
    ({**made(), "id": "0"}, "integer id that no other object has, got '0'"),
    ({"tuple": [], "id": 0}, r"an entry of kind 'tuple' has no \['id'\]"),
    ({"class": "transforms.Logit", "arguments": {"alpha": 0.7}}, "flow: ValueError, alpha"),
    (
        {"partial": {"class": "nn.ELU", "arguments": {}}, "arguments": {}},
        "expected a partial of a class",
    ),
    ({"tuple": 3}, "flow: 3 is not a valid 'tuple'"),
    ({"class": "logdet.Exact", "arguments": {}}, "expected a module, got Exact"),
]


@pytest.mark.parametrize(("node", "message"), NODES)
def test_strange_descriptions_are_refused(node: Any, message: str, saved: Path) -> None:
    changed(saved, lambda d: d.update(flow=node))
    with pytest.raises(CorruptCheckpointError, match=message) as info:
        load(saved)
    assert str(saved) in str(info.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"0": {"forward": 1}},
        {"0": {"_event_dim": 2}},
        {"0": {"__class__": {"type": "nn.ELU"}}},
        {"0": {"_modules": {"dict": []}}},
        {"0": {"training": False}},
        {"9": {"logdet": None}},
        {"0": 3},
    ],
)
def test_settings_reach_nothing_but_settings(settings: Any, saved: Path) -> None:
    changed(saved, lambda d: d.update(settings=settings))
    with pytest.raises(CorruptCheckpointError, match="settings"):
        load(saved)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(CorruptCheckpointError, match="was not written by"):
        load(other)
    save_file({"a": torch.zeros(2)}, other, {"pyro_resflow": "no JSON"})
    with pytest.raises(CorruptCheckpointError, match="not valid JSON"):
        load(other)
    save_file({"a": torch.zeros(2)}, other, {"pyro_resflow": "[" * 100_000})
    with pytest.raises(CorruptCheckpointError, match="not valid JSON"):
        load(other)
    other.write_text("a text")
    with pytest.raises(CorruptCheckpointError, match="not a complete safetensors file"):
        load(other)


def test_files_of_torch_save_are_sent_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"a torch\.save file.*load_reference"):
        load(reference_file("mnist_tiny"))
    torch.save(ActNorm(2), tmp_path / "flow.pt")
    with pytest.raises(CorruptCheckpointError, match=r"a torch\.save file"):
        load(tmp_path / "flow.pt")


def test_our_files_are_not_taken_for_torchs_by_their_first_bytes(saved: Path) -> None:
    for start in (b"PK", b"\x80\x02"):
        # the length of the header comes first
        def lengthen(d: dict[str, Any], start: bytes = start) -> None:
            d["notes"]["padding"] = ""
            (length,) = {int.from_bytes(saved.read_bytes()[:8], "little")}
            wanted = int.from_bytes(start, "little")
            while wanted < length + 400:
                wanted += 1 << 16
            d["notes"]["padding"] = "x" * (wanted - length - 200)

        changed(saved, lengthen)
        while saved.read_bytes()[:2] != start:
            length = int.from_bytes(saved.read_bytes()[:2], "little")
            step = (int.from_bytes(start, "little") - length) % (1 << 16)
            changed(
                saved,
                lambda d, step=step: d["notes"].update(padding=d["notes"]["padding"] + "x" * step),
            )
        load(saved)
        assert checkpoints.info(saved).kind == "pyro_resflow"


def test_no_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.safetensors")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_checksums_see_values_shapes_and_types(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    assert files.checksum(tensor) == files.checksum(tensor.clone())
    assert files.checksum(tensor) == files.checksum(tensor.t())  # equal values
    others = [tensor.flatten(), 1 - tensor.to(torch.int8), tensor[0, 0], tensor[:0]]
    sums = [files.checksum(each.to(dtype)) for each in (tensor, *others)]
    assert len({*sums, files.checksum(tensor.to(torch.float64))}) == 6


def test_the_package_needs_no_other_to_read_and_write(tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.modules["safetensors"] = None
        from pyro_resflow import checkpoints, residual_flow
        path = {str(tmp_path / "flow.safetensors")!r}
        checkpoints.save(residual_flow(2, 1, [4]), path)
        print(checkpoints.load(path).event_dim)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout == "1\n"
