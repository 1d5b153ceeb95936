"""Telling whether tensors still hold the values that they held.

Identity, version and address of a tensor change with most writes, but not with those through
``.data``, and they come back: new memory may have an old address. So the values count too. Small
tensors are remembered whole. Of a large one, a matrix of m rows, the product with a fixed random
vector is: m numbers, for one multiplication per entry, by which a change stays unseen only if each
of its rows is orthogonal to that vector or below the rounding of the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from .linearization import address
from .precision import autocast_dtype, full_precision

REMEMBERED_WHOLE = 4096
"""Up to as many entries; a copy of them is as quick as a product, and exact."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Fingerprint:
    """What tensors hold at one time.

    Args:
        tensors: any number, of any type.
    """

    __slots__ = ("_traces", "_values")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._traces = _traces(tensors)
        self._values = _values(tensors)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, and hold the same values."""
        if self._traces != _traces(tensors):
            return False
        return all(map(torch.equal, self._values, _values(tensors)))


def _traces(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """What changes when a tensor is replaced, written to or given other memory, as a rule."""
    try:
        return [(id(tensor), tensor._version, tensor.data_ptr()) for tensor in tensors]
    except RuntimeError:  # of inference tensors, which count no versions, and of fake ones
        return [
            (id(tensor), -1 if tensor.is_inference() else tensor._version, address(tensor))
            for tensor in tensors
        ]


def _values(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in short, one vector for each device and type."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    with torch.no_grad():
        for tensor in tensors:
            short = tensor if tensor.numel() <= REMEMBERED_WHOLE else _product(tensor)
            groups.setdefault((short.dtype, short.device), []).append(short)
        # as bits, for nan is as good a value as any other
        return [
            _flatten_dense_tensors(group).clone().view(_BITS[dtype.itemsize])
            if len(group) == 1
            else _flatten_dense_tensors(group).view(_BITS[dtype.itemsize])
            for (dtype, device), group in groups.items()
            if device.type != "meta"
        ]


def _product(tensor: Tensor) -> Tensor:
    """A matrix times the random vector."""
    rows = tensor.reshape(len(tensor), -1)
    if not rows.is_floating_point() or rows.itemsize < 4:
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
