from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_resflow.nn.lipschitz import operators
from pyro_resflow.nn.lipschitz.operators import (
    ConvolutionOperator,
    LinearOperator,
    MatrixOperator,
    gram_bound,
)

CONVOLUTIONS = [
    (kernel, size, channels)
    for kernel in (1, 3, 5)
    for size in ((1, 1), (2, 2), (1, 5), (4, 6))
    for channels in ((2, 3), (3, 2), (1, 30), (30, 1))  # the last two are thin
]


def convolution(kernel: int, size: tuple[int, int], channels: tuple[int, int]) -> Tensor:
    """Weights of the shape that channels (in, out) and kernel say."""
    return torch.randn(channels[1], channels[0], kernel, kernel, dtype=torch.float64)


def dense(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The matrix of the zero-padded convolution: its columns are the images of the unit images."""
    entries = weight.shape[1] * size[0] * size[1]
    units = torch.eye(entries, dtype=weight.dtype).view(entries, weight.shape[1], *size)
    return F.conv2d(units, weight, padding=weight.shape[-1] // 2).flatten(1).t()


def norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, 2)


def as_matrix(operator: LinearOperator, domain: int, codomain: int) -> tuple[Tensor, Tensor]:
    units = torch.eye(domain, dtype=torch.float64).unflatten(1, operator.domain)
    duals = torch.eye(codomain, dtype=torch.float64).unflatten(1, operator.codomain)
    return operator.apply(units).flatten(1).t(), operator.adjoint(duals).flatten(1)


def check_gradient(operator: LinearOperator) -> None:
    """``outer`` is the gradient by the weight, with any number of batch dimensions."""
    u = torch.randn(2, 3, *operator.codomain, dtype=torch.float64)
    v = torch.randn(2, 3, *operator.domain, dtype=torch.float64)
    operator.weight.requires_grad_()
    (expected,) = torch.autograd.grad((u * operator.apply(v)).sum(), operator.weight)
    torch.testing.assert_close(operator.outer((u, v)), expected)


def test_matrix_operator_is_the_matrix() -> None:
    weight = torch.randn(3, 5, dtype=torch.float64)
    applied, transposed = as_matrix(MatrixOperator(weight), 5, 3)
    torch.testing.assert_close(applied, weight)
    torch.testing.assert_close(transposed, weight)
    check_gradient(MatrixOperator(weight))


@pytest.mark.parametrize(("kernel", "size", "channels"), CONVOLUTIONS)
def test_convolution_operator_is_the_zero_padded_convolution(
    kernel: int, size: tuple[int, int], channels: tuple[int, int]
) -> None:
    weight = convolution(kernel, size, channels)
    matrix = dense(weight, size)
    codomain, domain = matrix.shape
    applied, transposed = as_matrix(ConvolutionOperator(weight, size), domain, codomain)
    torch.testing.assert_close(applied, matrix)
    torch.testing.assert_close(transposed, matrix)
    check_gradient(ConvolutionOperator(weight, size))


@pytest.mark.parametrize("dense_limit", [0, 1024], ids=["torus", "gram"])
@pytest.mark.parametrize(("kernel", "size", "channels"), CONVOLUTIONS)
def test_spectral_bound_of_convolutions_holds(
    kernel: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    dense_limit: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operators, "DENSE_LIMIT", dense_limit)
    weight = convolution(kernel, size, channels)
    bound = ConvolutionOperator(weight, size).spectral_bound(10)
    assert bound >= norm(dense(weight, size)) * (1 - 1e-13)  # rounding of the two computations


@pytest.mark.parametrize(("kernel", "size", "channels"), CONVOLUTIONS)
def test_spectral_bound_of_small_images_is_tight(
    kernel: int, size: tuple[int, int], channels: tuple[int, int]
) -> None:
    weight = convolution(kernel, size, channels)
    matrix = dense(weight, size)
    bound = ConvolutionOperator(weight, size).spectral_bound(10)
    # ten Gram steps leave a factor of at most rank^(1/2048); at rank 1 rounding is all there is
    assert bound <= norm(matrix) * min(matrix.shape) ** (1 / 2048) * (1 + 1e-13)


@pytest.mark.parametrize("kernel", [3, 5])
def test_spectral_bound_of_large_images_is_off_by_their_border_only(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "DENSE_LIMIT", 0)
    weight = convolution(kernel, (16, 16), (1, 2))
    truth = norm(dense(weight, (16, 16)))
    bound = ConvolutionOperator(weight, (16, 16)).spectral_bound(10)
    # the torus adds kernel - 1 pixels to each side, which a share of the vector can use
    assert 1 < bound / truth < 1 + 2 * (kernel - 1) / 16


def test_norm_of_the_convolution_is_not_that_of_the_reshaped_kernel() -> None:
    average = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    assert norm(average.flatten(1)) == pytest.approx(1 / 3)
    assert norm(dense(average, (16, 16))) > 0.97
    assert norm(dense(average, (1, 1))) == pytest.approx(1 / 9)


@pytest.mark.parametrize("order", [1.2, 2.0, 5.0])
@pytest.mark.parametrize(("kernel", "size", "channels"), CONVOLUTIONS)
def test_row_and_column_norms_of_convolutions_are_upper_bounds(
    kernel: int, size: tuple[int, int], channels: tuple[int, int], order: float
) -> None:
    weight = convolution(kernel, size, channels)
    operator, matrix = ConvolutionOperator(weight, size), dense(weight, size)
    row_norms = operator.row_norms(torch.tensor(order, dtype=torch.float64))
    column_norms = operator.column_norms(torch.tensor(order, dtype=torch.float64))
    rows = torch.linalg.vector_norm(matrix, order, dim=1)
    columns = torch.linalg.vector_norm(matrix, order, dim=0)
    assert (row_norms >= rows * (1 - 1e-13)).all()
    assert (column_norms >= columns * (1 - 1e-13)).all()
    if min(size) >= kernel:  # some output pixel then sees the whole kernel
        torch.testing.assert_close(row_norms.max(), rows.max())


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (20, 20)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gram_bound_holds_and_is_tight(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrices = torch.randn(4, *shape, dtype=dtype)
    truth = torch.linalg.svdvals(matrices).max()
    bound = gram_bound(matrices)
    assert not bound.is_complex()
    assert truth * (1 - 1e-13) <= bound <= truth * min(shape) ** (1 / 2048) * (1 + 1e-13)


def test_gram_bound_starts_at_frobenius_and_doubles_its_exponent() -> None:
    identity = torch.eye(9, dtype=torch.float64)[None]
    for steps in range(12):
        # n equal singular values are the worst case: ((n s^(2^(t+1))) ^ (1/2)) ^ (2^-t)
        expected = 9 ** (0.5 / 2**steps)
        assert gram_bound(identity, steps).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_gram_bound_neither_over_nor_underflows(scale: float) -> None:
    matrix = torch.randn(1, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(gram_bound(scale * matrix) / scale, gram_bound(matrix))


def test_gram_bound_of_zero_is_negligible() -> None:
    assert gram_bound(torch.zeros(1, 3, 3)) < 1e-30
