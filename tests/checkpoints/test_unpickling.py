"""What pickles may ask for, and that nothing of what they ask for happens."""

from __future__ import annotations

import argparse
import builtins
import io
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_resflow.checkpoints import (
    CorruptCheckpointError,
    UnsafePickleError,
    load_reference,
)
from pyro_resflow.checkpoints.torch_files import TorchFile
from pyro_resflow.checkpoints.unpickling import RestrictedUnpickler, StandIn, Storage
from tests.checkpoints.forgeries import Calls, is_stand_in, legacy, zipped


def unpickled(data: bytes) -> Any:
    return RestrictedUnpickler(io.BytesIO(data)).load()


class Harm:
    """Whether something was run that should not have been: it leaves a file behind."""

    def __init__(self, folder: Path) -> None:
        self.trace = folder / "harm"
        self.command = f"touch {self.trace}"

    @property
    def done(self) -> bool:
        return self.trace.exists()


@pytest.fixture
def harm(tmp_path: Path) -> Harm:
    return Harm(tmp_path)


CALLS: dict[str, tuple[Callable[[Harm], Calls], str]] = {
    "command": (lambda h: Calls(os.system, h.command), f"{os.name}.system"),
    "process": (lambda h: Calls(subprocess.call, ["touch", str(h.trace)]), r"\w+\.call"),
    "popen": (lambda h: Calls(subprocess.Popen, ["touch", str(h.trace)]), r"\w+\.Popen"),
    "eval": (lambda h: Calls(builtins.eval, f"open({str(h.trace)!r}, 'w')"), "builtins.eval"),
    "exec": (lambda h: Calls(builtins.exec, f"open({str(h.trace)!r}, 'w')"), "builtins.exec"),
    "open": (lambda h: Calls(builtins.open, str(h.trace), "w"), "io.open"),
    "getattr": (lambda h: Calls(builtins.getattr, os, "system"), "builtins.getattr"),
    "import": (lambda h: Calls(builtins.__import__, "os"), "builtins.__import__"),
    "torch": (lambda h: Calls(torch.load, str(h.trace)), "torch.serialization.load"),
    "torch_hub": (lambda h: Calls(torch.hub.load, "a", "b"), "torch.hub.load"),
}
WRITERS: dict[str, Callable[[Path, bytes], Path]] = {"zip": zipped, "legacy": legacy}


def named(module_and_name: str) -> str:
    """The name that a pickle of protocol 2, which torch writes, has for it."""
    return module_and_name.replace("builtins.", "__builtin__.")


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("writer", sorted(WRITERS))
@pytest.mark.parametrize("call", sorted(set(CALLS) - {"getattr"}))
def test_calls_are_refused_by_name_and_not_made(
    call: str, writer: str, protocol: int, harm: Harm, tmp_path: Path
) -> None:
    make, name = CALLS[call]
    data = pickle.dumps({"state_dict": {}, "args": make(harm)}, protocol=protocol)
    pickle.loads(data) if call == "command" else None
    assert harm.done == (call == "command")  # the pickle does what it is meant to
    harm.trace.unlink(missing_ok=True)
    path = WRITERS[writer](tmp_path / "evil.pth", data)
    asked_for = named(name) if protocol < 3 else name
    with pytest.raises(UnsafePickleError, match=f"asks for {asked_for}") as info:
        load_reference(path)
    assert str(path) in str(info.value)
    assert not harm.done


@pytest.mark.parametrize("call", ["command", "eval"])
def test_torchs_own_files_of_them(call: str, harm: Harm, tmp_path: Path) -> None:
    make, name = CALLS[call]
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(
            {"state_dict": {"a": torch.zeros(2)}, "args": make(harm)},
            tmp_path / "e.pth",
            **options,
        )
        with pytest.raises(UnsafePickleError, match=named(name)):
            load_reference(tmp_path / "e.pth")
    assert not harm.done


def test_a_bare_pickle_is_refused(harm: Harm, tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Calls(os.system, harm.command)))
    with pytest.raises(UnsafePickleError, match=f"{os.name}.system"):
        load_reference(path)
    assert not harm.done


OPCODES = {
    "inst": b"(S'{command}'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'{command}'\no.",
    "global": b"cos\nsystem\n(S'{command}'\ntR.",
    "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93(\x8c\x01xtR.",
    "dotted": b"\x80\x04\x8c\x0bcollections\x8c\x1dOrderedDict.__init_subclass__\x93.",
    "newobj": b"\x80\x02csubprocess\nPopen\n(S'{command}'\nt\x81.",
}


@pytest.mark.parametrize("opcode", sorted(OPCODES))
def test_every_way_to_name_something(opcode: str, harm: Harm) -> None:
    with pytest.raises(UnsafePickleError, match=r"os\.system|Popen|__init_subclass__"):
        unpickled(OPCODES[opcode].replace(b"{command}", harm.command.encode()))
    assert not harm.done


@pytest.mark.parametrize(
    "package", ["resflows.utils", "lib.utils", "torch.nn.modules.linear", "numpy"]
)
def test_stand_ins_call_and_import_nothing(
    package: str, harm: Harm, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType(package)
    module.touch = harm.trace.touch
    monkeypatch.setitem(sys.modules, package, module)
    made = unpickled(b"\x80\x02c" + package.encode() + b"\ntouch\n)R.")
    assert is_stand_in(made, "touch")
    assert not harm.done
    assert is_stand_in(unpickled(b"\x80\x02cresflows.nowhere\nAnything\n)R."), "Anything")
    assert "resflows.nowhere" not in sys.modules


@pytest.mark.parametrize("module", ["resflowsx", "libx.utils", "torch.nnx", "torch", "library"])
def test_no_other_package_gets_stand_ins(module: str) -> None:
    with pytest.raises(UnsafePickleError, match=f"{module}.Anything"):
        unpickled(b"\x80\x02c" + module.encode() + b"\nAnything\n)R.")


def test_stand_ins_keep_the_state_of_what_they_stand_for() -> None:
    options = unpickled(pickle.dumps(argparse.Namespace(act="elu", idim=8), protocol=2))
    assert isinstance(options, StandIn)
    assert not isinstance(options, argparse.Namespace)
    assert options.state == {"act": "elu", "idim": 8}


def test_plain_data_comes_back() -> None:
    data = {
        "ordered": OrderedDict(a=1),
        "set": {1, 2},
        "size": torch.Size((2, 3)),
        "numbers": [1, 2.5, None, True, "text", (1, 2), 10**30],
    }
    for protocol in range(2, 5):
        assert unpickled(pickle.dumps(data, protocol=protocol)) == data


def test_numpys_numbers_become_stand_ins() -> None:
    for protocol in (2, 4):
        data = pickle.dumps([np.float64(1.5), np.zeros(2), torch.device("cpu")], protocol)
        assert all(isinstance(each, StandIn) for each in unpickled(data))


def test_containers_that_stand_in() -> None:
    data = b"\x80\x02cresflows.pairs\nPairs\n)R(X\x01\x00\x00\x00aK\x01u."  # with an entry set
    assert is_stand_in(unpickled(data), "Pairs")
    assert is_stand_in(unpickled(b"\x80\x02cresflows.pairs\nL\n)R(K\x01K\x02e."), "L")


@pytest.mark.parametrize(
    "target", [b"ccollections\nOrderedDict\n", b"c__builtin__\nset\n", b"ctorch\nSize\n"]
)
def test_a_pickle_cannot_write_to_what_it_names(target: bytes) -> None:
    # BUILD with a state for __dict__ and one for setattr
    for state in (b"}X\x03\x00\x00\x00popK\x01s", b"N}X\x03\x00\x00\x00popK\x01s\x86"):
        with pytest.raises((TypeError, AttributeError)):
            unpickled(b"\x80\x02" + target + state + b"b.")


def test_what_a_pickle_writes_to_a_function_is_gone_with_it() -> None:
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    unpickled(b"\x80\x02" + rebuild + b"N}X\x05\x00\x00\x00traceK\x01s\x86b.")
    assert not hasattr(unpickled(b"\x80\x02" + rebuild + b"."), "trace")


@pytest.mark.parametrize(
    ("persistent", "message"),
    [
        (("file", "path"), "'file', which is no storage"),
        (("storage", "FloatStorage", "0", "cpu", 3), "'storage', which is no storage"),
        ((), "not enough values"),
        (7, "cannot unpack"),
    ],
)
def test_strange_references_are_refused(persistent: object, message: str, tmp_path: Path) -> None:
    class Refers(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return persistent if obj == "here" else None

    stream = io.BytesIO()
    Refers(stream, protocol=2).dump({"state_dict": "here"})
    with pytest.raises(CorruptCheckpointError, match=message):
        TorchFile(zipped(tmp_path / "strange.pth", stream.getvalue()))


def test_a_tensor_needs_a_storage() -> None:
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00K\x01\x85K\x01\x85tR."
    with pytest.raises(CorruptCheckpointError, match="without a storage"):
        unpickled(data)


def test_a_storage_is_known_by_its_first_mention() -> None:
    class Two(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            if isinstance(obj, float):
                return ("storage", torch.FloatStorage, "0", "cpu", int(obj))
            return None

    stream = io.BytesIO()
    Two(stream, protocol=2).dump([3.0, 3000.0])
    assert unpickled(stream.getvalue()) == [Storage("0", torch.float32, 3)] * 2
