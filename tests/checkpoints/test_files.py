"""Files that are written whole or not at all, and read with checks."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pyro_resflow import checkpoints, residual_flow
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

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with a flow."""
    save(residual_flow(2, 1, [4]), tmp_path / "flow.safetensors", notes={"data": "none"})
    return tmp_path / "flow.safetensors"


def parts_of(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        return file.metadata(), load_file(path)


# Writing


def test_notes_are_texts(tmp_path: Path) -> None:
    save(ActNorm(2), tmp_path / "n.safetensors", notes={"score": 1.5, "folder": tmp_path})
    assert checkpoints.info(tmp_path / "n.safetensors").notes == {
        "score": "1.5",
        "folder": str(tmp_path),
    }


def test_it_is_a_safetensors_file_with_the_names_of_a_state_dict(path: Path) -> None:
    metadata, tensors = parts_of(path)
    assert metadata["format"] == "pt"
    assert json.loads(metadata["pyro_resflow"])["version"] == 1
    flow = load(path)
    assert tensors.keys() == flow.state_dict().keys()
    other = residual_flow(2, 1, [4])
    other.load_state_dict(tensors)  # for whoever has no use for the rest
    x = torch.randn(3, 2)
    assert torch.equal(other(x), flow(x))


def test_a_flow_without_tensors(tmp_path: Path) -> None:
    from pyro_resflow.transforms import Squeeze

    save(Squeeze(3), tmp_path / "s.safetensors")
    assert load(tmp_path / "s.safetensors").factor == 3


class CrashError(RuntimeError):
    """The power goes off."""


@pytest.mark.parametrize(
    "step",
    [
        "pyro_resflow.checkpoints.files.save_file",
        "pyro_resflow.checkpoints.files.os.fsync",
        "pyro_resflow.checkpoints.files.os.replace",
    ],
)
def test_a_failure_leaves_the_old_file_and_nothing_else(step: str, path: Path) -> None:
    before = path.read_bytes()
    with mock.patch(step, side_effect=CrashError), pytest.raises(CrashError):
        save(residual_flow(3), path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_process_that_is_killed_leaves_the_old_file_whole(step: str, path: Path) -> None:
    before = path.read_bytes()
    code = f"""
        import os, signal
        from pyro_resflow import checkpoints, residual_flow

        def killed(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        os.{step} = killed
        checkpoints.save(residual_flow(3), {str(path)!r})
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=False)
    assert run.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    load(path)


def test_the_bytes_are_on_disk_before_the_file_is_replaced(path: Path) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    with (
        mock.patch.object(os, "fsync", side_effect=lambda fd: (order.append("fsync"), fsync(fd))),
        mock.patch.object(
            os, "replace", side_effect=lambda *a: (order.append("replace"), replace(*a))
        ),
    ):
        save(residual_flow(3), path)
    assert order == ["fsync", "replace", "fsync"]  # and the folder after it


def test_permissions_of_a_file_that_is_there_are_kept(path: Path) -> None:
    path.chmod(0o640)
    save(residual_flow(3), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_permissions_of_a_new_file_are_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    save(ActNorm(2), tmp_path / "new.safetensors")
    modes = [(tmp_path / name).stat().st_mode for name in ("usual", "new.safetensors")]
    assert modes[0] == modes[1]


def test_a_link_goes_on_pointing_to_the_file(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest.safetensors"
    link.symlink_to(path.name)
    save(ActNorm(5), link)
    assert link.is_symlink()
    assert load(path).num_features == 5


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it first"):
        save(ActNorm(2), tmp_path / "nowhere" / "flow.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        save(ActNorm(2), tmp_path / "flow.safetensors")


# Reading


def test_a_truncated_file_is_refused_wherever_it_ends(path: Path) -> None:
    data = path.read_bytes()
    for end in [*range(0, 200, 9), *range(200, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(CorruptCheckpointError, match=f"{path}: truncated or damaged"):
            load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorruptCheckpointError, match="truncated or damaged"):
        load(path)


def test_every_changed_byte_is_noticed_or_without_effect(path: Path) -> None:
    data = bytearray(path.read_bytes())
    expected = load(path).state_dict()
    refused = 0
    places = torch.randperm(len(data))[:400].tolist()
    for place in places:
        for flipped in (0x01, 0x80):
            data[place] ^= flipped
            path.write_bytes(data)
            data[place] ^= flipped
            try:
                found = load(path, certify=False).state_dict()
            except CheckpointError as error:
                assert str(error).startswith(f"{path}: ")  # noqa: PT017
                refused += 1
            else:
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert refused > 750


def test_a_damaged_tensor_is_named(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=r"damaged: the tensor '\S+' is not what"):
        load(path)


def changed(
    path: Path,
    description: Callable[[dict[str, Any]], Any] = lambda d: None,
    tensors: Callable[[dict[str, torch.Tensor]], Any] = lambda t: None,
) -> Path:
    """A file that says of itself that it is whole, after a change."""
    metadata, state = parts_of(path)
    content = json.loads(metadata["pyro_resflow"])
    tensors(state)
    content["checksums"] = {name: files.checksum(each) for name, each in state.items()}
    description(content)
    text = json.dumps(content)
    checked = {"pyro_resflow": text, "pyro_resflow.crc32": str(zlib.crc32(text.encode()))}
    save_file(state, path, checked)
    return path


def test_a_file_without_a_change_is_not_refused(path: Path) -> None:
    load(changed(path))


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_an_unknown_version_is_refused(version: object, path: Path) -> None:
    changed(path, lambda d: d.update(version=version))
    with pytest.raises(UnknownVersionError, match=r"version .* reads up to 1\. Update"):
        load(path)


@pytest.mark.parametrize("part", ["flow", "settings", "training", "notes", "torch", "checksums"])
def test_a_description_without_a_part_is_refused(part: str, path: Path) -> None:
    changed(path, lambda d: d.pop(part))
    with pytest.raises(CorruptCheckpointError, match=f"{path}: its description has no '{part}'"):
        load(path)


def test_missing_surplus_and_misshapen_tensors_are_refused(path: Path) -> None:
    data = path.read_bytes()

    def refused(change: Callable[[dict[str, torch.Tensor]], Any], message: str) -> None:
        path.write_bytes(data)
        changed(path, tensors=change)
        with pytest.raises(TensorMismatchError, match=message):
            load(path)

    refused(lambda t: t.pop("0.net.0.weight"), r"flow\.safetensors: .*missing '0\.net\.0\.weight'")
    refused(lambda t: t.update(more=torch.zeros(1)), "surplus 'more'")
    refused(
        lambda t: t.update({"0.net.0.bias": torch.zeros(5)}),
        r"'0\.net\.0\.bias' has shape \(5,\), expected \(4,\)",
    )
    # a single number would be broadcast
    refused(lambda t: t.update({"0.net.0.bias": torch.zeros(())}), r"shape \(\), expected \(4,\)")


def test_several_problems_are_named_at_once(path: Path) -> None:
    changed(path, tensors=lambda t: t.update(more=t.pop("0.net.0.weight")))
    with pytest.raises(TensorMismatchError, match=r"missing '0\.net\.0\.weight'; surplus 'more'"):
        load(path)


def test_a_list_of_tensors_that_is_not_the_files_is_refused(path: Path) -> None:
    changed(path, lambda d: d["checksums"].pop("0.net.0.weight"))
    with pytest.raises(CorruptCheckpointError, match=r"list of tensors.*0\.net\.0\.weight"):
        load(path)


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
def test_no_other_class_can_be_named(name: str, path: Path) -> None:
    changed(path, lambda d: d.update(flow={"class": name, "arguments": {}}))
    with pytest.raises(
        UnknownClassError, match=r"no class that a file may name|classes of your own"
    ):
        load(path)
    changed(path, lambda d: d.update(flow={"type": name}))
    with pytest.raises(UnknownClassError):
        load(path)


NODES: list[tuple[Any, str]] = [
    ({}, "expected one kind of entry"),
    ({"class": "nn.ELU", "type": "nn.ELU"}, "expected one kind of entry"),
    ({"class": "nn.ELU"}, "flow: KeyError"),
    ({"class": "nn.ELU", "arguments": []}, "flow: AttributeError"),
    ({"class": "nn.ELU", "arguments": {"unknown": 1}}, "flow: TypeError"),
    ({"class": ["nn.ELU"], "arguments": {}}, "flow: AttributeError"),
    ({"class": "transforms.ActNorm", "arguments": {"num_features": -1}}, "flow: RuntimeError"),
    (
        {"class": "transforms.ActNorm", "arguments": {"num_features": {"ref": 7}}},
        "num_features: KeyError",
    ),
    (
        {
            "class": "transforms.ActNorm",
            "arguments": {"num_features": {"tensor": "#9", "parameter": False}},
        },
        "num_features: KeyError",
    ),
    ({"class": "transforms.Logit", "arguments": {"alpha": 0.7}}, "flow: ValueError, alpha"),
    (
        {"class": "transforms.Logit", "arguments": {"alpha": {"dtype": "load"}}},
        "'load' is no type",
    ),
    (
        {"partial": {"class": "nn.ELU", "arguments": {}}, "arguments": {}},
        "something that is no class",
    ),
    ({"tuple": 3}, "flow: TypeError"),
    ({"class": "logdet.Exact", "arguments": {}}, "expected a module, got Exact"),
]


@pytest.mark.parametrize(("node", "message"), NODES)
def test_strange_descriptions_are_refused(node: Any, message: str, path: Path) -> None:
    changed(path, lambda d: d.update(flow=node))
    with pytest.raises(CorruptCheckpointError, match=message) as info:
        load(path)
    assert str(path) in str(info.value)


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
def test_settings_reach_nothing_but_settings(settings: Any, path: Path) -> None:
    changed(path, lambda d: d.update(settings=settings))
    with pytest.raises(CorruptCheckpointError, match="settings"):
        load(path)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(CorruptCheckpointError, match="was not written by"):
        load(other)
    save_file({"a": torch.zeros(2)}, other, {"pyro_resflow": "no JSON"})
    with pytest.raises(CorruptCheckpointError, match="no JSON of ours"):
        load(other)
    save_file({"a": torch.zeros(2)}, other, {"pyro_resflow": "[" * 100_000})
    with pytest.raises(CorruptCheckpointError, match="no JSON of ours"):
        load(other)
    other.write_text("a text")
    with pytest.raises(CorruptCheckpointError, match="no whole safetensors file"):
        load(other)


def test_files_of_torch_save_are_sent_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"a file of torch\.save.*load_reference"):
        load(reference_file("mnist_tiny"))
    torch.save(ActNorm(2), tmp_path / "flow.pt")
    with pytest.raises(CorruptCheckpointError, match=r"a file of torch\.save"):
        load(tmp_path / "flow.pt")


def test_our_files_are_not_taken_for_torchs_by_their_first_bytes(path: Path) -> None:
    for start in (b"PK", b"\x80\x02"):
        # the length of the header comes first
        def lengthen(d: dict[str, Any], start: bytes = start) -> None:
            d["notes"]["padding"] = ""
            (length,) = {int.from_bytes(path.read_bytes()[:8], "little")}
            wanted = int.from_bytes(start, "little")
            while wanted < length + 400:
                wanted += 1 << 16
            d["notes"]["padding"] = "x" * (wanted - length - 200)

        changed(path, lengthen)
        while path.read_bytes()[:2] != start:
            length = int.from_bytes(path.read_bytes()[:2], "little")
            step = (int.from_bytes(start, "little") - length) % (1 << 16)
            changed(
                path,
                lambda d, step=step: d["notes"].update(padding=d["notes"]["padding"] + "x" * step),
            )
        load(path)
        assert checkpoints.info(path).kind == "pyro_resflow"


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


def test_without_safetensors_the_extra_is_named() -> None:
    code = """
        import sys
        sys.modules["safetensors"] = None
        import pyro_resflow
        try:
            import pyro_resflow.checkpoints
        except ImportError as error:
            print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "needs safetensors" in run.stdout
    assert "pip install 'pyro-resflow[checkpoints]'" in run.stdout
