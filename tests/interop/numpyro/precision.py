"""Single and double precision, in torch and in JAX at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import torch


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """Both libraries at ``"float32"`` or ``"float64"``."""
    dtype = getattr(torch, name)
    torch.set_default_dtype(dtype)
    jax.config.update("jax_enable_x64", name == "float64")
    try:
        yield dtype
    finally:
        torch.set_default_dtype(torch.float32)
        jax.config.update("jax_enable_x64", False)


def tolerance(dtype: torch.dtype) -> float:
    """How far the two libraries may differ."""
    return 1e-5 if dtype == torch.float32 else 1e-10


@contextmanager
def quick_compilation() -> Iterator[None]:
    """JAX without its costly optimizations, which only pay for programs that run for long."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
