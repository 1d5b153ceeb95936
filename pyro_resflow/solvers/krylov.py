"""Linear systems with I + A, in the Krylov space of A."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..arnoldi import ArnoldiBasis, ShiftedSystems


def solve_shifted(
    product: Callable[[Tensor], Tensor], right: Tensor, goal: Tensor | float, max_steps: int
) -> Tensor:
    r"""Solve (I + A) u = b per sample in the Krylov space of A and b, by FOM.

    The textbook's full orthogonalization method (Saad, 2003, section 6.4) takes
    :math:`u = |b|\,V (I + H)^{-1} e_1` after a fixed number of steps. This one runs on a batch and
    stops when each sample's residual, :math:`|b|\,h_{k+1,k}\,|e_k^T (I + H)^{-1} e_1|`, is within
    its goal. GMRES is more common, but for a contraction I + H is nonsingular, so that FOM
    is safe, and its small systems are those of the log-determinant.

    Args:
        product: A v, on ``(N, D)``.
        right: b, shape ``(N, D)``.
        goal: relative residual to reach, a number or shape ``(N,)``.
        max_steps: size of the largest Krylov space; the caller may restart from the result.

    Returns:
        u, shape ``(N, D)``.
    """
    basis = ArnoldiBasis(right)
    systems = ShiftedSystems(torch.ones_like(basis.norm[:1])[:, None])
    for _ in range(max_steps):
        # 1. one product, its column of H, and the factors of I + H with it
        column = basis.extend(product(basis.last.to(right.dtype)))
        systems.extend(column)
        # 2. the relative residual, without u
        last_coefficient = (systems.y[-1] / systems.upper[-1][-1])[0]
        if right.is_meta or bool((column[:, -1] * last_coefficient.abs() <= goal).all()):
            break
    # 3. u from the coefficients in the basis
    entries = systems.solve([1.0] * len(systems.y))
    return basis.combine(torch.stack([entry[0] for entry in entries], dim=-1)).to(right.dtype)
