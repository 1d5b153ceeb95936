"""Detect whether the values of tensors have changed.

Most writes change a tensor's identity, version or address. If one of them differs, as after each
step of an optimizer, values need not be compared. If all are equal, the values are compared too,
because writes through ``.data`` change none of the three, and new memory may have an old address.
For small tensors a fingerprint stores a copy. For a large tensor, seen as a matrix with m rows, it
stores the product with a fixed random vector: m numbers, at one multiplication per entry. A change
goes undetected only if each of its rows is orthogonal to that vector or below the rounding error
of the sums.

A comparison of values on an accelerator synchronises with it. Writes through ``.data`` leave no
other trace, so the comparison is necessary; a single one serves any number of fingerprints.
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
"""The largest number of entries that are copied: a copy is as fast as a product, and exact."""

_MULTIPLIED = torch.float32, torch.float64
"""Dtypes in which products are computed; tensors of other dtypes are converted to float32."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer dtypes by size in bytes. Values are compared as integers, so that nan equals nan."""

_Kind = tuple[torch.dtype, torch.device]
"""The dtype and device of tensors whose digests are stored in one vector."""


class _Part(NamedTuple):
    """The digests of the tensors of one kind in a group.

    Attributes:
        indices: the tensors' indices in the group.
        bits: their digests as one vector of integers.
    """

    indices: list[int]
    bits: Tensor


class Fingerprint:
    """A record of the values of tensors at one time.

    Args:
        tensors: any number of tensors, of any dtype.
    """

    __slots__ = ("_identities", "_parts")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._identities = _identities(tensors)
        (self._parts,) = _parts([tensors])

    @classmethod
    def of_each(cls, groups: Sequence[Sequence[Tensor]]) -> list[Fingerprint]:
        """The fingerprints of several groups of tensors, computed together."""
        found = []
        for tensors, parts in zip(groups, _parts(groups), strict=True):
            each = cls.__new__(cls)
            each._identities, each._parts = _identities(tensors), parts
            found.append(each)
        return found

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors with the same values."""
        return which_fit([self], [tensors])[0]


def which_fit(
    fingerprints: Sequence[Fingerprint], groups: Sequence[Sequence[Tensor]]
) -> list[bool]:
    """Which of several fingerprints fit their groups of tensors.

    A single comparison of values suffices unless values have changed without a change of identity,
    version or address.
    """
    same: list[bool] = []
    candidates: list[tuple[Fingerprint, Sequence[Tensor]]] = []
    for each, tensors in zip(fingerprints, groups, strict=True):
        same.append(each._identities == _identities(tensors))
        if same[-1]:
            candidates.append((each, tensors))
    if not candidates or _values_equal(candidates):
        return same
    pairs = zip(fingerprints, groups, strict=True)
    return [is_same and _values_equal([pair]) for pair, is_same in zip(pairs, same, strict=True)]


def _values_equal(pairs: Sequence[tuple[Fingerprint, Sequence[Tensor]]]) -> bool:
    """Whether the tensors of all pairs still have the recorded values."""
    recorded: dict[_Kind, list[Tensor]] = {}
    present: dict[_Kind, list[Tensor]] = {}
    for each, tensors in pairs:
        for kind, part in each._parts.items():
            recorded.setdefault(kind, []).append(part.bits)
            present.setdefault(kind, []).extend(map(tensors.__getitem__, part.indices))
    with torch.no_grad():
        for kind, bits in recorded.items():
            before = bits[0] if len(bits) == 1 else torch.cat(bits)
            if not torch.equal(before, _bits(_digests(present[kind]))):
                return False
    return True


def _identities(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """The identity, version and address of each tensor; most writes change one of them."""
    found: list[tuple[int, int, int]] = []
    try:
        for tensor in tensors:
            found.append((id(tensor), tensor._version, tensor.data_ptr()))
    except RuntimeError:  # inference tensors have no version, fake tensors have no address
        return [
            (id(tensor), -1 if tensor.is_inference() else tensor._version, address(tensor))
            for tensor in tensors
        ]
    return found


def _parts(groups: Sequence[Sequence[Tensor]]) -> list[dict[_Kind, _Part]]:
    """The digests of each group's tensors by kind, computed together."""
    found: list[dict[_Kind, _Part]] = [{} for _ in groups]
    for kind, indices in _indices_by_kind(groups).items():
        with torch.no_grad():
            digests = [
                _digests([tensors[i] for i in inside])
                for tensors, inside in zip(groups, indices, strict=True)
            ]
            together = _bits([*chain.from_iterable(digests)])
            if len(groups) > 1:
                split = together.split([sum(map(Tensor.numel, each)) for each in digests])
            else:
                split = (together,)
        for parts, inside, bits in zip(found, indices, split, strict=True):
            if inside:
                parts[kind] = _Part(inside, bits)
    return found


def _indices_by_kind(groups: Sequence[Sequence[Tensor]]) -> dict[_Kind, list[list[int]]]:
    """For each kind, the indices of its tensors in each group; meta tensors are left out."""
    found: dict[_Kind, list[list[int]]] = {}
    of_kind: list[list[int]] = []
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    for group, tensors in enumerate(groups):
        for index, tensor in enumerate(tensors):
            # hashing a device is slow, so the kind is looked up only when it changes
            if tensor.dtype is not dtype or tensor.device != device:
                is_multiplied = tensor.dtype in _MULTIPLIED
                keeps_dtype = is_multiplied or tensor.numel() <= REMEMBERED_WHOLE
                kind = tensor.dtype if keeps_dtype else torch.float32, tensor.device
                of_kind = found.setdefault(kind, [[] for _ in groups])
                # the kind of other dtypes depends on the tensor's size too
                dtype, device = tensor.dtype if is_multiplied else None, tensor.device
            of_kind[group].append(index)
    return {kind: indices for kind, indices in found.items() if kind[1].type != "meta"}


def _digests(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor, or its product with the random vector if it is large."""
    found: list[Tensor] = []
    for each in tensors:
        found.append(each if each.numel() <= REMEMBERED_WHOLE else _product(each))
    return found


def _bits(tensors: list[Tensor]) -> Tensor:
    """Copy all entries to one vector of integers."""
    flat = _flatten_dense_tensors(tensors)
    flat = flat.clone() if len(tensors) == 1 else flat
    return flat.view(_BITS.get(flat.itemsize, flat.dtype))


def _product(tensor: Tensor) -> Tensor:
    """The product of a tensor, as a matrix, with the random vector."""
    rows = tensor.reshape(len(tensor), -1)
    if rows.dtype not in _MULTIPLIED:
        rows = rows.float()
    with full_precision(rows) if _is_lowered(rows) else nullcontext():
        return torch.mv(rows, random_vector(rows.shape[1], rows.dtype, rows.device))


def _is_lowered(tensor: Tensor) -> bool:
    """Whether torch may compute products with a precision below the tensor's dtype."""
    if autocast_dtype(tensor) is not None:
        return True
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # settings made by torch's newer interface cannot be read by this one
        return True


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def random_vector(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A fixed vector of shape ``(size,)`` with pseudorandom normal entries."""
    if device.type == "meta":  # meta tensors have no values
        return torch.empty(size, dtype=dtype, device=device)
    generator = torch.Generator("cpu").manual_seed(0)
    normal = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
    return normal.to(device, dtype)
