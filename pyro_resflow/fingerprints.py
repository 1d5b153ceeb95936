"""Telling whether tensors still hold the values that they held.

Identity, version and address of a tensor change with most writes. Where one of them has changed,
as after each step of an optimizer, no value is looked at. They do not change with writes through
``.data``, and they come back: new memory may have an old address. So where they are the same, the
values count too. Small tensors are remembered whole. Of a large one, a matrix of m rows, the
product with a fixed random vector is remembered: m numbers, for one multiplication per entry. A
change stays unseen only if each of its rows is orthogonal to that vector or below the rounding of
the sums.

To compare values on an accelerator is to wait for it. Nothing but a value tells of a write through
``.data``, so it cannot be left out; but one comparison serves any number of fingerprints.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from .linearization import address
from .precision import autocast_dtype, full_precision

REMEMBERED_WHOLE = 4096
"""Up to as many entries; a copy of them is as quick as a product, and exact."""

_MULTIPLIED = torch.float32, torch.float64
"""Types whose products are taken as they are; those of others in float32."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers to compare values by, by their size in bytes: nan is as good a value as any other."""

_Kind = tuple[torch.dtype, torch.device]
"""What tensors have in common that are remembered in one vector."""


class _Part(NamedTuple):
    """The tensors of one kind among several.

    Attributes:
        places: their places among the tensors.
        bits: their values in short, one vector.
    """

    places: list[int]
    bits: Tensor


class Fingerprint:
    """What tensors hold at one time.

    Args:
        tensors: any number, of any type.
    """

    __slots__ = ("_parts", "_traces")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._traces = _traces(tensors)
        (self._parts,) = _parts([tensors])

    @classmethod
    def of_each(cls, groups: Sequence[Sequence[Tensor]]) -> list[Fingerprint]:
        """The fingerprints of several groups of tensors, whose values are copied together."""
        found = []
        for tensors, parts in zip(groups, _parts(groups), strict=True):
            each = cls.__new__(cls)
            each._traces, each._parts = _traces(tensors), parts
            found.append(each)
        return found

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, and hold the same values."""
        return which_fit([self], [tensors])[0]


def which_fit(
    fingerprints: Sequence[Fingerprint], groups: Sequence[Sequence[Tensor]]
) -> list[bool]:
    """Which of several fingerprints fit their groups of tensors, in one comparison as a rule."""
    pairs = list(zip(fingerprints, groups, strict=True))
    same = [each._traces == _traces(tensors) for each, tensors in pairs]
    alike = [pair for pair, traces in zip(pairs, same, strict=True) if traces]
    if not alike or _hold(alike):
        return same
    return [traces and _hold([pair]) for pair, traces in zip(pairs, same, strict=True)]


def _hold(pairs: Sequence[tuple[Fingerprint, Sequence[Tensor]]]) -> bool:
    """Whether all tensors, which leave the traces that they left, have the same values."""
    for kind in {kind for each, _ in pairs for kind in each._parts}:
        of_kind = [(each._parts[kind], tensors) for each, tensors in pairs if kind in each._parts]
        with torch.no_grad():
            now = _bits(_short([tensors[i] for part, tensors in of_kind for i in part.places]))
        if not torch.equal(_joined([part.bits for part, _ in of_kind]), now):
            return False
    return True


def _joined(vectors: list[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


def _traces(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """What changes when a tensor is replaced, written to or given other memory, as a rule."""
    try:
        return [(id(tensor), tensor._version, tensor.data_ptr()) for tensor in tensors]
    except RuntimeError:  # of inference tensors, which count no versions, and of fake ones
        return [
            (id(tensor), -1 if tensor.is_inference() else tensor._version, address(tensor))
            for tensor in tensors
        ]


def _parts(groups: Sequence[Sequence[Tensor]]) -> list[dict[_Kind, _Part]]:
    """What each group's tensors hold, by kinds, copied together."""
    found: list[dict[_Kind, _Part]] = [{} for _ in groups]
    for kind, places in _places(groups).items():
        with torch.no_grad():
            short = [
                _short([tensors[i] for i in inside])
                for tensors, inside in zip(groups, places, strict=True)
            ]
            together = _bits([*chain.from_iterable(short)])
            if len(groups) > 1:
                split = together.split([sum(map(Tensor.numel, each)) for each in short])
            else:
                split = (together,)
        for parts, inside, bits in zip(found, places, split, strict=True):
            if inside:
                parts[kind] = _Part(inside, bits)
    return found


def _places(groups: Sequence[Sequence[Tensor]]) -> dict[_Kind, list[list[int]]]:
    """Where in each group tensors of each kind are, without those that have no values."""
    found: dict[_Kind, list[list[int]]] = {}
    for group, tensors in enumerate(groups):
        for place, tensor in enumerate(tensors):
            whole = tensor.dtype in _MULTIPLIED or tensor.numel() <= REMEMBERED_WHOLE
            kind = tensor.dtype if whole else torch.float32, tensor.device
            if kind not in found:
                found[kind] = [[] for _ in groups]
            found[kind][group].append(place)
    return {kind: places for kind, places in found.items() if kind[1].type != "meta"}


def _short(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor, or its product with the random vector if it is large."""
    return [each if each.numel() <= REMEMBERED_WHOLE else _product(each) for each in tensors]


def _bits(tensors: list[Tensor]) -> Tensor:
    """All entries in one vector, a copy, as integers."""
    flat = _flatten_dense_tensors(tensors)
    flat = flat.clone() if len(tensors) == 1 else flat
    return flat.view(_BITS.get(flat.itemsize, flat.dtype))


def _product(tensor: Tensor) -> Tensor:
    """A matrix times the random vector."""
    rows = tensor.reshape(len(tensor), -1)
    if rows.dtype not in _MULTIPLIED:
        rows = rows.float()
    with full_precision(rows) if _is_lowered(rows) else nullcontext():
        return torch.mv(rows, random_vector(rows.shape[1], rows.dtype, rows.device))


def _is_lowered(tensor: Tensor) -> bool:
    """Whether products may be taken in less than the tensor's type."""
    if autocast_dtype(tensor) is not None:
        return True
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # which settings are in force is said by the newer interface
        return True


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def random_vector(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A fixed vector, shape ``(size,)``, whose entries look like independent normal numbers."""
    if device.type == "meta":  # where nothing has values
        return torch.empty(size, dtype=dtype, device=device)
    generator = torch.Generator("cpu").manual_seed(0)
    normal = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
    return normal.to(device, dtype)
