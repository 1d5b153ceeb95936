from __future__ import annotations

import pytest
import scipy.linalg
import torch
from torch import Tensor

from pyro_resflow.arnoldi import ArnoldiBasis, log1p_corner, solve_first

B, D = 5, 12


def matrices(*, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random matrices of spectral norm 0.97."""
    a = torch.randn(B, D, D, dtype=dtype)
    return 0.97 * a / torch.linalg.matrix_norm(a, 2)[:, None, None]


def grown(a: Tensor, start: Tensor, steps: int) -> ArnoldiBasis:
    basis = ArnoldiBasis(start)
    for _ in range(steps):
        basis.extend(torch.einsum("bij,bj->bi", a, basis.last))
    return basis


def rectangular_hessenberg(basis: ArnoldiBasis) -> Tensor:
    """The (k + 1) x k matrix with A V_k = V_(k+1) H."""
    rows = len(basis) + 1
    columns = [torch.nn.functional.pad(c, (0, rows - c.shape[-1])) for c in basis.columns]
    return torch.stack(columns, dim=-1)


# --- the basis ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 11])
def test_basis_is_orthonormal_and_starts_at_the_vector(steps: int) -> None:
    start = torch.randn(B, D, dtype=torch.float64)
    basis = grown(matrices(), start, steps)
    v = torch.stack(basis.vectors, dim=2)
    assert len(basis) == steps
    identity = torch.eye(steps + 1, dtype=torch.float64).expand(B, -1, -1)
    torch.testing.assert_close(v.mT @ v, identity, rtol=0, atol=1e-13)
    torch.testing.assert_close(v[..., 0] * basis.norm[:, None], start)
    torch.testing.assert_close(basis.last, v[..., -1], rtol=0, atol=0)


def test_basis_stays_orthonormal_where_one_sweep_would_not() -> None:
    # eigenvalues from 1 to 1e-10: the products nearly fall into the space that is there
    spectrum = torch.logspace(0, -10, D, dtype=torch.float64)
    basis = grown(spectrum.diag().expand(1, D, D), torch.ones(1, D, dtype=torch.float64), D - 1)
    v = torch.stack(basis.vectors, dim=2)
    torch.testing.assert_close(
        v.mT @ v, torch.eye(D, dtype=torch.float64)[None], rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("steps", [1, 4, 11])
def test_products_lie_in_the_basis(steps: int) -> None:
    a, start = matrices(), torch.randn(B, D, dtype=torch.float64)
    basis = grown(a, start, steps)
    v = torch.stack(basis.vectors, dim=2)
    torch.testing.assert_close(a @ v[..., :steps], v @ rectangular_hessenberg(basis))
    projected = v[..., :steps].mT @ a @ v[..., :steps]
    torch.testing.assert_close(basis.hessenberg(), projected, rtol=0, atol=1e-13)
    torch.testing.assert_close(basis.hessenberg(1), projected[:, :1, :1], rtol=0, atol=1e-13)


def test_combination_is_taken_in_the_basis() -> None:
    start = torch.randn(B, D, dtype=torch.float64)
    basis = grown(matrices(), start, 4)
    coefficients = torch.randn(B, 3, dtype=torch.float64)
    v = torch.stack(basis.vectors[:3], dim=2)
    expected = (v @ coefficients[..., None]).squeeze(-1) * start.norm(dim=1, keepdim=True)
    torch.testing.assert_close(basis.combine(coefficients), expected)


def test_krylov_space_gives_the_solution_and_the_logarithm() -> None:
    a, b = matrices(), torch.randn(B, D, dtype=torch.float64)
    basis = grown(a, b, D)
    identity = torch.eye(D, dtype=torch.float64)
    solution = torch.linalg.solve(identity + a, b)
    torch.testing.assert_close(basis.combine(solve_first(basis.hessenberg())), solution)
    log = torch.stack([log1p(matrix) for matrix in a])
    expected = torch.einsum("bi,bij,bj->b", b, log, b)
    torch.testing.assert_close(basis.norm**2 * log1p_corner(basis.hessenberg()), expected)


def test_exhausted_sample_stops_and_its_neighbours_go_on() -> None:
    a = matrices()
    start = torch.randn(B, D, dtype=torch.float64)
    a[0, 3:, :3] = 0
    start[0, 3:] = 0  # its Krylov space has three dimensions
    start[1] = 0  # and this one's none
    basis = grown(a, start, 6)
    alone = grown(a[2:], start[2:], 6)
    torch.testing.assert_close(basis.hessenberg()[2:], alone.hessenberg())
    v = torch.stack(basis.vectors, dim=2)
    h = rectangular_hessenberg(basis)
    for sample, size in ((0, 3), (1, 0)):
        assert not v[sample, :, max(size, 1) :].any()
        assert not h[sample, size:].any()
        assert not h[sample, :, size:].any()
    assert h.isfinite().all()
    identity = torch.eye(D, dtype=torch.float64)
    solution = basis.combine(solve_first(basis.hessenberg()))
    torch.testing.assert_close(solution[0], torch.linalg.solve(identity + a[0], start[0]))
    assert not solution[1].any()
    log = basis.norm**2 * log1p_corner(basis.hessenberg())
    torch.testing.assert_close(log[0], start[0] @ log1p(a[0]) @ start[0])
    assert log[1] == 0


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_half_precision_is_promoted(dtype: torch.dtype, kept: torch.dtype) -> None:
    basis = ArnoldiBasis(torch.randn(B, D).to(dtype))
    basis.extend(torch.randn(B, D).to(dtype))
    assert basis.last.dtype == kept
    assert basis.hessenberg().dtype == kept


# --- functions of the small matrices ------------------------------------------------------------


def log1p(matrix: Tensor) -> Tensor:
    """log(I + A) by scipy's inverse scaling and squaring."""
    return torch.from_numpy(
        scipy.linalg.logm(torch.eye(len(matrix)).numpy() + matrix.numpy()).real
    )


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_logarithm_is_that_of_scipy(size: int) -> None:
    a = torch.randn(B, size, size, dtype=torch.float64)
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)[:, None, None]
    expected = torch.stack([log1p(matrix)[0, 0] for matrix in a])
    # 32 nodes integrate eigenvalues as far as -0.9 from 0 to the last digits
    torch.testing.assert_close(log1p_corner(a), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("eigenvalue", "error"), [(-0.98, 1e-7), (-0.9, 1e-12), (0.0, 1e-15), (0.98, 1e-14)]
)
def test_logarithm_near_the_singularity_is_as_good_as_documented(
    eigenvalue: float, error: float
) -> None:
    eigenvalues = torch.tensor([eigenvalue, 0.5, -0.3], dtype=torch.float64)
    vectors, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    a = vectors @ eigenvalues.diag() @ vectors.T
    expected = (vectors[0] ** 2) @ eigenvalues.log1p()
    assert abs(log1p_corner(a[None]).item() - expected.item()) < error
    alone = log1p_corner(eigenvalues[:1, None, None]).item()
    assert abs(alone - eigenvalues[0].log1p().item()) < error


def test_single_precision_follows_double() -> None:
    a = matrices()[:, :5, :5]
    found = log1p_corner(a.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), log1p_corner(a), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_first_column_is_that_of_the_inverse(size: int) -> None:
    a = matrices()[:, :size, :size]
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(solve_first(a), torch.linalg.inv(identity + a)[..., 0])
