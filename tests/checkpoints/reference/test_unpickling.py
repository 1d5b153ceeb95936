"""Pickles with calls, imports or damage are rejected, and nothing that they name runs."""

from __future__ import annotations

import argparse
import builtins
import copyreg
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
    LimitError,
    Limits,
    UnsafePickleError,
    UnsupportedFlowError,
    info,
    load_reference,
)
from pyro_resflow.checkpoints.reference.records import StandIn, Storage
from pyro_resflow.checkpoints.reference.unpickling import RestrictedUnpickler
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
    "open": (lambda h: Calls(builtins.open, str(h.trace), "w"), r"_?io\.open"),
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
    with pytest.raises(UnsafePickleError, match=f"asks for {asked_for}") as caught:
        load_reference(path)
    assert str(path) in str(caught.value)
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
    "target",
    [
        b"ccollections\nOrderedDict\n",
        b"c__builtin__\nset\n",
        b"ctorch\nSize\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"cresflows.utils\nAverage\n",
    ],
)
def test_a_pickle_cannot_write_to_what_it_names(target: bytes) -> None:
    # BUILD with a state for __dict__ and one for setattr
    for state in (b"}X\x03\x00\x00\x00popK\x01s", b"N}X\x03\x00\x00\x00popK\x01s\x86"):
        with pytest.raises(CorruptCheckpointError, match="sets the state of"):
            unpickled(b"\x80\x02" + target + state + b"b.")


@pytest.mark.parametrize(
    ("persistent", "message"),
    [
        (("file", "path"), "'file', which is not a storage"),
        (("storage", "FloatStorage", "0", "cpu", 3), "'storage', which is not a storage"),
        ((), r"refers to \[\], which is not a storage"),
        (7, "refers to 7, which is not a storage"),
    ],
)
def test_strange_references_are_refused(persistent: object, message: str, tmp_path: Path) -> None:
    class Refers(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return persistent if obj == "here" else None

    stream = io.BytesIO()
    Refers(stream, protocol=2).dump({"state_dict": "here"})
    with pytest.raises(CorruptCheckpointError, match=message):
        load_reference(zipped(tmp_path / "strange.pth", stream.getvalue()))


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


def wrapped(data: bytes, levels: int) -> bytes:
    """A tuple in a tuple in a tuple: a byte each."""
    return data + b"\x85" * levels


KEYS = {
    "dict": b"}" + wrapped(b")", 50) + b"Ns.",
    "dict_of_several": b"}(" + wrapped(b")", 50) + b"Nu.",
    "dict_at_once": b"(" + wrapped(b")", 50) + b"Nd.",
    "set": b"c__builtin__\nset\n(" + wrapped(b")", 50) + b"lq\x00\x85R.",
    "set_of_several": b"\x8f(" + wrapped(b")", 50) + b"\x90.",
    "frozenset": b"(" + wrapped(b")", 50) + b"\x91.",
    "ordered": b"ccollections\nOrderedDict\n((" + wrapped(b")", 50) + b"Ntl\x85R.",
}


@pytest.mark.parametrize("name", sorted(KEYS))
def test_nothing_nested_is_hashed(name: str) -> None:
    """Hashing a tuple that is nested deep enough ends the process: there is no check for it."""
    with pytest.raises(CorruptCheckpointError, match=r"uses \[<builtins.tuple>\] as a key"):
        unpickled(b"\x80\x04" + KEYS[name])


def test_nested_objects_are_not_followed(tmp_path: Path) -> None:
    """Neither by errors nor by what is shown: a list of lists of itself has no end."""
    options = b"cargparse\nNamespace\n)R}(X\x03\x00\x00\x00act" + wrapped(b")", 5000)
    options += b"X\x06\x00\x00\x00vnorms]q\x00(h\x00h\x00e"
    options += b"X\x05\x00\x00\x00nbits(h\x00h\x00h\x00h\x00tub"
    content = b"}(X\x04\x00\x00\x00args" + options + b"X\x0a\x00\x00\x00state_dict}u."
    path = zipped(tmp_path / "nested.pth", b"\x80\x02" + content)
    found = info(path)
    assert found.flow["act"] == "[<builtins.tuple>]"
    assert found.flow["vnorms"] == "[<builtins.list>, <builtins.list>]"
    assert "nbits: [<builtins.list>, <builtins.list>" in str(found)
    with pytest.raises(UnsupportedFlowError, match=r"options .* are missing"):
        load_reference(path)


LENGTHS = {
    "binbytes": b"B\xff\xff\xff\x7f",
    "binunicode": b"X\xff\xff\xff\xff",
    "binbytes8": b"\x8e" + (2**40).to_bytes(8, "little"),
    "binunicode8": b"\x8d" + (2**40).to_bytes(8, "little"),
    "binstring": b"T\xff\xff\xff\x7f",
    "long4": b"\x8b\xff\xff\xff\x7f",
    "frame": b"\x95" + (2**40).to_bytes(8, "little"),
}


@pytest.mark.parametrize("name", sorted(LENGTHS))
def test_a_length_is_not_believed_before_its_bytes_are_there(name: str, tmp_path: Path) -> None:
    class Seen(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1) -> bytes:
            Seen.largest = max(Seen.largest, -1 if size is None else size)
            return super().read(size)

    data = b"\x80\x04" + LENGTHS[name] + b"some."
    with pytest.raises(EOFError, match="ends inside a pickle"):
        RestrictedUnpickler(Seen(data)).load()
    assert 0 < Seen.largest <= 8
    for writer in WRITERS.values():
        with pytest.raises(CorruptCheckpointError, match=r"truncated, damaged or not a torch"):
            load_reference(writer(tmp_path / "long.pth", data))


@pytest.mark.parametrize(
    "instruction",
    [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"\x96" + b"\xff" * 8, b"\x97"],
)
def test_instructions_that_no_file_of_torchs_has(
    instruction: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extension stands for what the process has unpickled before, whatever that is."""
    monkeypatch.setitem(copyreg._extension_cache, 1, os.system)
    monkeypatch.setitem(copyreg._inverted_registry, 1, ("os", "system"))
    with pytest.raises(KeyError):
        unpickled(b"\x80\x05" + instruction + b".")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"K\x01)R.", "calls 1"),
        (b"ctorch\nFloatStorage\n)R.", "calls <torch.dtype>"),
        (b"ccollections\nOrderedDict\nK\x01R.", "calls something with 1"),
        (b"K\x01K\x02a.", "appends to 1"),
        (b"K\x01(K\x02e.", "appends to 1"),
        (b"]K\x02K\x03s.", r"sets an entry of \[\]"),
        (b"](K\x02K\x03u.", r"sets an entry of \[\]"),
        (b"](K\x02\x90.", r"adds to \[\]"),
        (b"]}b.", r"sets the state of \[\]"),
        (b"cresflows.x\nY\n}b.", "sets the state of <builtins.type>"),
    ],
)
def test_objects_that_an_instruction_does_not_fit(data: bytes, message: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=f"it {message}"):
        unpickled(b"\x80\x04" + data)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        (b"K\x07\x85", b"K\x01\x85"),  # larger than its storage
        (b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"),  # one number, seen as two thousand million
        (b"K\x02K\x04\x86", b"K\x00K\x01\x86"),  # as two rows of four
        (b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
        (b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
        (b"K\x02\x85", b"K\x01K\x01\x86"),
        (b"K\x02", b"K\x01\x85"),
        (b"]\x85", b"]\x85"),
        (b"G" + b"\x00" * 8 + b"\x85", b"K\x01\x85"),
        (b"(" + b"K\x01" * 65 + b"t", b"(" + b"K\x01" * 65 + b"t"),
    ],
)
def test_a_tensor_is_no_larger_than_its_storage(shape: bytes, stride: bytes) -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x06tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00%b%bt\x52."
    assert unpickled(b"\x80\x02" + tensor % (b"K\x02K\x03\x86", b"K\x03K\x01\x86")).shape == (2, 3)
    with pytest.raises(CorruptCheckpointError, match=r"larger than its storage|contains a tensor"):
        unpickled(b"\x80\x02" + tensor % (shape, stride))


@pytest.mark.parametrize("part", ["key", "size"])
def test_storages_have_a_name_and_a_size(part: str) -> None:
    for given in (b"J\xff\xff\xff\xff", b"N", wrapped(b")", 50), b"G" + b"\x00" * 8):
        key, size = (given, b"K\x06") if part == "key" else (b"X\x01\x00\x00\x000", given)
        storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + key + b"N" + size + b"tQ."
        with pytest.raises(CorruptCheckpointError, match="refers to a storage"):
            unpickled(b"\x80\x02" + storage)


def test_instructions_are_counted() -> None:
    limits = Limits(instructions=100)
    assert RestrictedUnpickler(io.BytesIO(b"]" + b"0]" * 49 + b"."), limits).load() == []
    with pytest.raises(LimitError, match=r"more instructions than limits: instructions=100\."):
        RestrictedUnpickler(io.BytesIO(b"]" + b"0]" * 50 + b"."), limits).load()
    # a list of ten, copied again and again
    copies = b"(" + b"N" * 10 + b"lq\x00" + b"0ctorch\nSize\nh\x00\x85R" * 20 + b"."
    with pytest.raises(LimitError, match="more instructions"):
        RestrictedUnpickler(io.BytesIO(copies), Limits(instructions=200)).load()
    RestrictedUnpickler(io.BytesIO(copies), Limits(instructions=400)).load()


def test_classes_are_counted() -> None:
    named = b"".join(b"cresflows.x\nA%d\n0" % i for i in range(1001))
    with pytest.raises(LimitError, match="names more than 1000 classes"):
        unpickled(named + b"N.")
    assert unpickled(b"cresflows.x\nA\n0" * 1001 + b"N.") is None
    with pytest.raises(LimitError, match="longer than limits: header=10 bytes"):
        RestrictedUnpickler(io.BytesIO(b"N0" * 10 + b"N."), Limits(header=10)).load()
