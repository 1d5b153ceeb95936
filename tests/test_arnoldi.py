from __future__ import annotations

import pytest
import scipy.linalg
import torch
from torch import Tensor

from pyro_resflow.arnoldi import ArnoldiBasis, LogarithmAndInverse, ShiftedSystems

B, D = 5, 12
Terms = tuple[tuple[float, float], ...]


def matrices(*, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random matrices of spectral norm 0.97."""
    a = torch.randn(B, D, D, dtype=dtype)
    return 0.97 * a / torch.linalg.matrix_norm(a, 2)[:, None, None]


def grown(a: Tensor, start: Tensor, steps: int) -> tuple[ArnoldiBasis, list[Tensor]]:
    """The basis after some products, and the columns of H."""
    basis = ArnoldiBasis(start)
    columns = [basis.extend(torch.einsum("bij,bj->bi", a, basis.last)) for _ in range(steps)]
    return basis, columns


def rectangular_hessenberg(columns: list[Tensor]) -> Tensor:
    """The (k + 1) x k matrix with A V_k = V_(k+1) H."""
    rows = len(columns) + 1
    padded = [torch.nn.functional.pad(c, (0, rows - c.shape[-1])) for c in columns]
    return torch.stack(padded, dim=-1)


def columns_of(h: Tensor) -> list[Tensor]:
    """The columns of square Hessenberg matrices, each with its entry below the diagonal."""
    padded = torch.nn.functional.pad(h, (0, 0, 0, 1))
    return [padded[:, : k + 2, k] for k in range(h.shape[-1])]


LOG_ONE_PLUS = ((1.0, 1.0),)


def logarithm(columns: list[Tensor], terms: Terms = LOG_ONE_PLUS) -> Tensor:
    """The corner entry of log(I + H), for each number of columns, shape (k, B)."""
    functions = LogarithmAndInverse(columns[0], terms)
    return torch.stack([functions.extend(column) for column in columns]).cumsum(0)


def inverse(
    columns: list[Tensor], weights: list[float] | None = None, terms: Terms = LOG_ONE_PLUS
) -> Tensor:
    """The first column of the inverse of I + H, shape (B, k)."""
    functions = LogarithmAndInverse(columns[0], terms)
    for column in columns:
        functions.extend(column)
    return functions.inverse([1.0] * len(columns) if weights is None else weights)


# --- the basis ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 11])
def test_basis_is_orthonormal_and_starts_at_the_vector(steps: int) -> None:
    start = torch.randn(B, D, dtype=torch.float64)
    basis, columns = grown(matrices(), start, steps)
    v = torch.stack(basis.vectors, dim=2)
    assert [c.shape for c in columns] == [(B, k + 2) for k in range(steps)]
    identity = torch.eye(steps + 1, dtype=torch.float64).expand(B, -1, -1)
    torch.testing.assert_close(v.mT @ v, identity, rtol=0, atol=1e-13)
    torch.testing.assert_close(v[..., 0] * basis.norm[:, None], start)
    torch.testing.assert_close(basis.last, v[..., -1], rtol=0, atol=0)


def test_basis_stays_orthonormal_where_one_sweep_would_not() -> None:
    # eigenvalues from 1 to 1e-10: the products nearly fall into the space that is there
    spectrum = torch.logspace(0, -10, D, dtype=torch.float64)
    basis, _ = grown(spectrum.diag().expand(1, D, D), torch.ones(1, D, dtype=torch.float64), D - 1)
    v = torch.stack(basis.vectors, dim=2)
    torch.testing.assert_close(
        v.mT @ v, torch.eye(D, dtype=torch.float64)[None], rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("steps", [1, 4, 11])
def test_products_lie_in_the_basis(steps: int) -> None:
    a, start = matrices(), torch.randn(B, D, dtype=torch.float64)
    basis, columns = grown(a, start, steps)
    v = torch.stack(basis.vectors, dim=2)
    h = rectangular_hessenberg(columns)
    torch.testing.assert_close(a @ v[..., :steps], v @ h)
    projected = v[..., :steps].mT @ a @ v[..., :steps]
    torch.testing.assert_close(h[:, :steps], projected, rtol=0, atol=1e-13)


def test_combination_is_taken_in_the_basis() -> None:
    start = torch.randn(B, D, dtype=torch.float64)
    basis, _ = grown(matrices(), start, 4)
    coefficients = torch.randn(B, 3, dtype=torch.float64)
    v = torch.stack(basis.vectors[:3], dim=2)
    expected = (v @ coefficients[..., None]).squeeze(-1) * start.norm(dim=1, keepdim=True)
    torch.testing.assert_close(basis.combine(coefficients), expected)


def test_krylov_space_gives_the_solution_and_the_logarithm() -> None:
    a, b = matrices(), torch.randn(B, D, dtype=torch.float64)
    basis, columns = grown(a, b, D)
    identity = torch.eye(D, dtype=torch.float64)
    solution = torch.linalg.solve(identity + a, b)
    torch.testing.assert_close(basis.combine(inverse(columns)), solution)
    log = torch.stack([log1p(matrix) for matrix in a])
    expected = torch.einsum("bi,bij,bj->b", b, log, b)
    torch.testing.assert_close(basis.norm**2 * logarithm(columns)[-1], expected)


def test_exhausted_sample_stops_and_its_neighbours_go_on() -> None:
    a = matrices()
    start = torch.randn(B, D, dtype=torch.float64)
    a[0, 3:, :3] = 0
    start[0, 3:] = 0  # its Krylov space has three dimensions
    start[1] = 0  # and this one's none
    basis, columns = grown(a, start, 6)
    _, alone = grown(a[2:], start[2:], 6)
    torch.testing.assert_close([c[2:] for c in columns], alone)
    v = torch.stack(basis.vectors, dim=2)
    h = rectangular_hessenberg(columns)
    for sample, size in ((0, 3), (1, 0)):
        assert not v[sample, :, max(size, 1) :].any()
        assert not h[sample, size:].any()
        assert not h[sample, :, size:].any()
    assert h.isfinite().all()
    identity = torch.eye(D, dtype=torch.float64)
    solution = basis.combine(inverse(columns))
    torch.testing.assert_close(solution[0], torch.linalg.solve(identity + a[0], start[0]))
    assert not solution[1].any()
    log = basis.norm**2 * logarithm(columns)[-1]
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
    column = basis.extend(torch.randn(B, D).to(dtype))
    assert basis.last.dtype == kept
    assert column.dtype == kept


# --- functions of the small matrices ------------------------------------------------------------


def log1p(matrix: Tensor) -> Tensor:
    """log(I + A) by scipy's inverse scaling and squaring."""
    return torch.from_numpy(
        scipy.linalg.logm(torch.eye(len(matrix)).numpy() + matrix.numpy()).real
    )


def hessenberg(a: Tensor) -> Tensor:
    """The same maps in a basis that starts with the same vector, as Hessenberg matrices."""
    return torch.stack([torch.from_numpy(scipy.linalg.hessenberg(m.numpy())) for m in a])


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_logarithm_is_that_of_scipy_for_each_number_of_columns(size: int) -> None:
    a = torch.randn(B, size, size, dtype=torch.float64)
    h = hessenberg(0.9 * a / torch.linalg.matrix_norm(a, 2)[:, None, None])
    expected = torch.stack(
        [torch.stack([log1p(m[:k, :k])[0, 0] for m in h]) for k in range(1, size + 1)]
    )
    torch.testing.assert_close(logarithm(columns_of(h)), expected, rtol=1e-12, atol=1e-12)


CAYLEY = ((1.0, -1.0), (-1.0, 1.0))


@pytest.mark.parametrize("terms", [LOG_ONE_PLUS, CAYLEY])
@pytest.mark.parametrize(
    # the error of H's own rounding grows as 1 / (1 + eigenvalue)
    ("eigenvalue", "error"),
    [
        (0.0, 1e-14),
        (-0.98, 1e-13),
        (-0.99, 1e-13),
        (-0.995, 1e-13),
        (-0.999, 1e-12),
        (-0.9999, 1e-11),
        (0.9999, 1e-11),
        (-0.999999, 1e-9),
    ],
)
def test_logarithm_is_exact_up_to_the_singularity(
    eigenvalue: float, error: float, terms: Terms
) -> None:
    eigenvalues = torch.tensor([eigenvalue, 0.5, -0.3, 0.1], dtype=torch.float64)
    vectors, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    h = hessenberg((vectors @ eigenvalues.diag() @ vectors.T)[None])
    logs = sum(s * (t * eigenvalues).log1p() for s, t in terms)
    found = logarithm(columns_of(h), terms)
    assert abs(found[-1].item() - float((vectors[0] ** 2) @ logs)) < error
    alone = logarithm(columns_of(eigenvalues[:1, None, None]), terms).item()
    assert alone == pytest.approx(float(logs[0]), abs=1e-15, rel=1e-15)


@pytest.mark.parametrize("terms", [LOG_ONE_PLUS, CAYLEY])
@pytest.mark.parametrize(
    "block",
    [
        [[0.3, 0.0], [0.5, 0.3]],  # one eigenvalue and one vector
        [[0.0, 0.9999], [-0.9999, 0.0]],  # a pair of complex ones
        [[-0.9, 0.0], [0.0, 0.2]],  # exhausted after the first column
        [[-0.4, 0.5999], [0.5999, -0.4]],  # an eigenvalue of -0.9999
        [[-0.999, 1e-9], [1e-9, -0.999]],
        [[-0.999, -1e-9], [1e-9, -0.999]],
    ],
)
def test_two_columns_have_the_logarithm_of_scipy(block: list[list[float]], terms: Terms) -> None:
    h = torch.tensor([block], dtype=torch.float64)
    expected = sum(s * log1p(t * h[0])[0, 0] for s, t in terms)
    found = logarithm(columns_of(h), terms)[-1]
    torch.testing.assert_close(found[0], expected, rtol=1e-11, atol=1e-13)


def test_logarithm_of_matrices_far_from_normal() -> None:
    h = hessenberg(0.9999 * matrices()[:, :6, :6] / 0.97)
    h[0] = 0.9999 * torch.diag(torch.ones(5, dtype=torch.float64), -1)  # a shift: no eigenvector
    h[1] = torch.diag(torch.full((6,), -0.4999, dtype=torch.float64))
    h[1] += torch.diag(torch.full((5,), 0.5, dtype=torch.float64), -1)  # a Jordan block
    expected = torch.stack([log1p(m)[0, 0] for m in h])
    torch.testing.assert_close(logarithm(columns_of(h))[-1], expected, rtol=1e-12, atol=1e-12)


def test_last_column_leaves_the_entry_below_the_diagonal_away() -> None:
    a, start = matrices(), torch.randn(B, D, dtype=torch.float64)
    _, columns = grown(a, start, 4)
    basis, first = grown(a, start, 3)
    last = basis.last_column(torch.einsum("bij,bj->bi", a, basis.last))
    torch.testing.assert_close(last, columns[-1][:, :-1])
    assert len(basis.vectors) == 4
    torch.testing.assert_close(logarithm([*first, last]), logarithm(columns))
    weights = [1.0, 1.0, 0.5, 2.0]
    found = basis.combine(inverse([*first, last], weights))
    torch.testing.assert_close(found, grown(a, start, 4)[0].combine(inverse(columns, weights)))


def test_single_precision_follows_double() -> None:
    columns = columns_of(hessenberg(matrices()[:, :5, :5]))
    found = logarithm([c.float() for c in columns])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), logarithm(columns), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_first_column_is_that_of_the_inverse(size: int) -> None:
    h = hessenberg(matrices()[:, :size, :size])
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(inverse(columns_of(h)), torch.linalg.inv(identity + h)[..., 0])


@pytest.mark.parametrize("terms", [((1.0, -1.0), (-1.0, 1.0)), ((2.0, 0.5), (-1.0, -0.8))])
def test_sum_of_logarithms_and_its_derivative(terms: Terms) -> None:
    h = hessenberg(0.9 * matrices()[:, :5, :5])
    value = sum(s * torch.stack([log1p(t * m) for m in h]) for s, t in terms)
    torch.testing.assert_close(logarithm(columns_of(h), terms)[-1], value[:, 0, 0])
    identity = torch.eye(5, dtype=torch.float64)
    slope = sum(s * t * torch.linalg.inv(identity + t * h) for s, t in terms)
    torch.testing.assert_close(inverse(columns_of(h), terms=terms), slope[..., 0])


def test_weighted_increments_of_the_inverse_are_those_of_the_leading_blocks() -> None:
    h = hessenberg(matrices()[:, :4, :4])
    weights = [1.0, 0.7, -2.0, 5.0]
    expected, last = torch.zeros(B, 4, dtype=torch.float64), torch.zeros(B, 4, dtype=torch.float64)
    for k, weight in enumerate(weights, start=1):
        block = torch.eye(k, dtype=torch.float64) + h[:, :k, :k]
        current = torch.nn.functional.pad(torch.linalg.inv(block)[..., 0], (0, 4 - k))
        expected, last = expected + weight * (current - last), current
    torch.testing.assert_close(inverse(columns_of(h), weights), expected)


def test_systems_are_solved_for_every_shift() -> None:
    h = hessenberg(matrices()[:, :4, :4])
    shifts = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    systems = ShiftedSystems(shifts)
    for column in columns_of(h):
        systems.extend(column)
    found = torch.stack(systems.solve([1.0] * 4), dim=-1)
    identity = torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.inv(identity + shifts[..., None, None] * h)[..., 0]
    torch.testing.assert_close(found, expected)
