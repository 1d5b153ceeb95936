"""Linear systems with I + A, in the Krylov space of A."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..arnoldi import ArnoldiBasis, solve_first


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
    coefficients = torch.zeros_like(right[:, :1])
    for _ in range(max_steps):
        basis.extend(product(basis.last.to(right.dtype)))
        coefficients = solve_first(basis.hessenberg())
        left = basis.columns[-1][:, -1] * coefficients[:, -1].abs()
        if right.is_meta or bool((left <= goal).all()):
            break
    return basis.combine(coefficients).to(right.dtype)
