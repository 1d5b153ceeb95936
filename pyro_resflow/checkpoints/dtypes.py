"""The tensor dtypes that a file may name; a name can refer to no other."""

from __future__ import annotations

import torch

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that a parameter can have."""

_OTHERS = (
    torch.bool,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype for dtype in (*FLOATING, *_OTHERS)
}
"""Dtypes by name. ``getattr(torch, name)`` is unsafe: it can import lazily loaded modules."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def check_floating(dtype: torch.dtype | None) -> None:
    """Raise unless a flow can be converted to a dtype.

    Raises:
        ValueError: unless it is a floating-point dtype that torch computes in.
    """
    if dtype is not None and dtype not in FLOATING:
        expected = ", ".join(map(str, FLOATING))
        raise ValueError(f"dtype: expected one of {expected}, got {dtype!r}.")
