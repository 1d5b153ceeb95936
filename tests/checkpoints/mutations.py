"""Files with one or a few changed parts and repaired checksums.

A byte that is flipped anywhere is mostly caught by a checksum. Whoever means harm writes the
checksum that fits; so these change what a file says, part by part, and then make it whole again.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from pyro_resflow.checkpoints.layout import CODES, tensor_of

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 200, 2**31, 2**63, 10**30, 0.5, -1e308, 1e308),
    *("", "a", "nn.ELU", "logdet.Exact", "\x1b[31m", "\ud800", "x" * 5000, "float64", "hub"),
    *([], {}, [[]], [1, 2, 3], {"ref": 0}, {"ref": 10**9}, {"tuple": []}, {"dict": [[[], 1]]}),
    *({"dtype": "float32"}, {"dtype": "nonsense"}, {"float": "nan"}, {"type": "nn.Tanh"}),
    {"type": "flows.ResidualFlow"},
    {"class": "logdet.Krylov", "arguments": {}},
    {"class": "nn.LipschitzMLP", "arguments": {"input_dim": 9}},
    {"partial": {"type": "nn.CLipSwish"}, "arguments": {"feature_dim": -3}},
    {"tensor": "#0", "parameter": True},
)
"""What takes the place of a part of a description, or of a header."""

PIECES = (
    *(b"]", b"}", b")", b"(", b"0", b"2", b"N", b"\x88", b"\x85", b"\x86", b"t", b"l", b"d"),
    *(b"a", b"e", b"s", b"u", b"b", b"R", b"\x81", b"Q", b".", b"\x8f", b"\x90", b"\x91"),
    *(b"K\x00", b"K\xff", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x7f"),
    *(b"h\x00", b"h\x01", b"h\x05", b"q\x00", b"q\x02", b"G" + struct.pack(">d", 1e308)),
    b"B" + struct.pack("<I", 2**31 - 1),
    b"X" + struct.pack("<I", 2**32 - 1),
    b"\x8d" + struct.pack("<Q", 2**40),
    b"\x95" + struct.pack("<Q", 2**40),
    b"\x96" + struct.pack("<Q", 2**40),
    b"\x8b" + struct.pack("<i", 2**31 - 1),
    *(b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"c__builtin__\nset\n"),
    *(b"cresflows.x\nY\n", b"cnumpy\nfloat64\n", b"cos\nsystem\n", b"\x82\x01"),
    *(b"X\x01\x00\x00\x00a", b"X\x04\x00\x00\x00\x1b[1m", b"X\x03\x00\x00\x00\xed\xa0\x80"),
)
"""Instructions of a pickle, whole or with a length that is not there."""

Mutate = Callable[[Random], bytes]


def safetensors_mutator(source: Path) -> Mutate:
    """Changes to a file of :func:`pyro_resflow.checkpoints.save`."""
    data = source.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    description = json.loads(header["__metadata__"]["pyro_resflow"])

    def mutate(random: Random) -> bytes:
        if random.random() < 0.1:
            return _flipped(data, random)
        new_header, new, raw = copy.deepcopy(header), copy.deepcopy(description), values
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            what = random.random()
            if what < 0.6:
                _change(new, random)
            elif what < 0.9:
                _change_entry(new_header, random)
            else:
                raw = _flipped(values, random)
        if random.random() < 0.9:
            _mend_checksums(new_header, new, raw)
        text = json.dumps(new)
        new_header["__metadata__"] = {
            "pyro_resflow": text,
            "pyro_resflow.crc32": str(zlib.crc32(text.encode())),
        }
        if random.random() < 0.05:
            _change(new_header, random)
        start = json.dumps(new_header).encode()
        return len(start).to_bytes(8, "little") + start + raw

    return mutate


def torch_mutator(source: Path) -> Mutate:
    """Changes to a zip file of ``torch.save``."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    instructions = _instructions(entries[name])

    def mutate(random: Random) -> bytes:
        changed = dict(entries)
        changed[name] = _changed_pickle(instructions, random)
        if random.random() < 0.1:
            other = random.choice(list(changed))
            changed[other] = _flipped(changed[other], random)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for each, content in changed.items():
                if random.random() > 0.001:
                    archive.writestr(each, content)
        whole = stream.getvalue()
        return _flipped(whole, random, of_end=2000) if random.random() < 0.2 else whole

    return mutate


def legacy_mutator(source: Path) -> Mutate:
    """Changes to a file of ``torch.save`` in the format before torch 1.6."""
    data = source.read_bytes()
    pickles, start = [], 0
    for _ in range(5):
        stream = io.BytesIO(data[start:])
        for _ in pickletools.genops(stream):
            pass
        pickles.append(_instructions(data[start : start + stream.tell()]))
        start += stream.tell()

    def mutate(random: Random) -> bytes:
        changed = random.choices(range(5), (1, 1, 1, 8, 4))[0]
        parts = [
            _changed_pickle(each, random) if i == changed else b"".join(each)
            for i, each in enumerate(pickles)
        ]
        rest = _flipped(data[start:], random) if random.random() < 0.2 else data[start:]
        return b"".join(parts) + rest

    return mutate


def _instructions(data: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(data)]
    return [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]


def _changed_pickle(instructions: list[bytes], random: Random) -> bytes:
    changed = list(instructions)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        place = random.randrange(len(changed))
        what = random.random()
        if what < 0.2:
            del changed[place]
        elif what < 0.5:
            changed.insert(place, random.choice(PIECES))
        elif what < 0.7:
            changed[place] = random.choice(PIECES)
        elif what < 0.8:
            changed[place] = random.choice(changed)
        elif what < 0.85:
            changed.insert(place, b"\x85" * random.choice((1, 50, 2000)))
        else:
            changed[place] = _changed_argument(changed[place], random)
        if not changed:
            break
    return b"".join(changed)


def _changed_argument(instruction: bytes, random: Random) -> bytes:
    """Another number, or another text of its length and of any."""
    if instruction[:1] in (b"K", b"M", b"J"):
        number = random.choice((0, 1, 2, 3, 255, 2**16, 2**31 - 1, -1, -(2**31)))
        return b"J" + struct.pack("<i", number)
    if instruction[:1] == b"X":
        text = random.choice((b"", b"1-1", b"9999999-1", b"elu", b"\x1b[1m", b"1" * 9000))
        return b"X" + struct.pack("<I", len(text)) + text
    return bytes(_flipped(instruction, random))


def _flipped(data: bytes, random: Random, of_end: int | None = None) -> bytes:
    """A few bytes changed, removed or added, or the end cut off."""
    changed = bytearray(data)
    if not changed:
        return b"\x00"
    first = max(0, len(changed) - of_end) if of_end else 0
    what = random.random()
    if what < 0.1:
        return bytes(changed[: random.randrange(first, len(changed))])
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randrange(first, len(changed))
        changed[place] = random.randrange(256)
    if what > 0.9:
        place = random.randrange(first, len(changed))
        changed[place:place] = random.randbytes(random.choice((1, 8, 100)))
    return bytes(changed)


def _change(document: Any, random: Random) -> None:
    """Change one part of a JSON document, wherever it is."""
    places = _places(document)
    if not places:
        return
    holder, key = random.choice(places)
    what = random.random()
    if what < 0.5:
        holder[key] = _copied(random.choice(VALUES))
    elif what < 0.6:
        del holder[key]
    elif what < 0.75:
        other, other_key = random.choice(places)
        holder[key] = _copied(other[other_key])
    elif what < 0.85:
        holder[key] = random.choice(([holder[key]], {"tuple": [holder[key]]}, [holder[key]] * 9))
    elif what < 0.9:
        for _ in range(random.choice((3, 80, 150))):
            holder[key] = random.choice(([holder[key]], {"tuple": [holder[key]]}))
    elif isinstance(holder, dict):
        name = random.choice(("id", "ref", "arguments", "positional", "class", "x" * 300, key))
        holder[name] = _copied(random.choice((0, 1, holder[key])))


def _copied(part: Any) -> Any:
    """A copy of a part of a document; of one that is nested too deep for that, nothing."""
    try:
        return copy.deepcopy(part)
    except RecursionError:
        return None


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Of each part of a JSON document, what holds it and under which key."""
    found, left = [], [document]
    while left:
        holder = left.pop()
        keys = range(len(holder)) if isinstance(holder, list) else list(holder)
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], list | dict):
                left.append(holder[key])
    return found


def _change_entry(header: dict[str, Any], random: Random) -> None:
    """Change what a header says of a tensor: its type to one as wide or not, or any of it."""
    name = random.choice([name for name in header if name != "__metadata__"] or ["none"])
    entry = header.setdefault(name, {"dtype": "F32", "shape": [], "data_offsets": [0, 0]})
    what = random.random()
    if what < 0.4 and isinstance(entry, dict):
        entry["dtype"] = random.choice((*CODES, "F4", "Q8"))
    elif what < 0.6 and isinstance(entry, dict):
        entry["shape"] = random.choice(([], [0], [1], [2**62, 4], [-1], [10**30], [1] * 70))
    elif what < 0.7:
        header[random.choice(("more", "x" * 5000, "\x1b[1m"))] = entry
    elif what < 0.8:
        del header[name]
    else:
        _change({name: entry}, random)


def _mend_checksums(header: dict[str, Any], description: Any, values: bytes) -> None:
    """Write the checksums that fit the values, where there are any."""
    if not isinstance(description, dict):
        return
    checksums = {}
    for name, entry in header.items():
        try:
            start, end = entry["data_offsets"]
            tensor = tensor_of(bytearray(values[start:end]), CODES[entry["dtype"]])
            of_type = zlib.crc32(f"{tensor.dtype}{tuple(entry['shape'])}".encode())
            checksums[name] = zlib.crc32(values[start:end], of_type)
        except (KeyError, TypeError, ValueError, RuntimeError):
            continue
    description["checksums"] = checksums
