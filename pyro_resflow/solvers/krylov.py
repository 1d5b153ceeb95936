"""Linear systems with I + A, in the Krylov space of A."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..arnoldi import ArnoldiBasis, ShiftedSystems


def solve_shifted(
    product: Callable[[Tensor], Tensor], right: Tensor, goal: Tensor | float, max_steps: int
) -> Tensor:
    r"""Solve (I + A) u = b per sample in the Krylov space of A and b (full orthogonalization).

    Args:
        product: A v, on ``(N, D)``.
        right: b, shape ``(N, D)``.
        goal: relative residual to reach, a number or shape ``(N,)``.
        max_steps: size of the largest Krylov space; a later restart is the caller's.

    Returns:
        u, shape ``(N, D)``.
    """
    basis = ArnoldiBasis(right)
    systems = ShiftedSystems(torch.ones_like(basis.norm[:1])[:, None])
    for _ in range(max_steps):
        column = basis.extend(product(basis.last.to(right.dtype)))
        systems.extend(column)
        last_coefficient = (systems.y[-1] / systems.upper[-1][-1])[0]
        if right.is_meta or bool((column[:, -1] * last_coefficient.abs() <= goal).all()):
            break
    entries = systems.solve([1.0] * len(systems.y))
    return basis.combine(torch.stack([entry[0] for entry in entries], dim=-1)).to(right.dtype)
