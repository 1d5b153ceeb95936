r"""Products with :math:`A^T A` or :math:`A A^T`, of several operators at once.

Both have the largest singular value of A, squared, for their largest eigenvalue; whichever acts on
the shorter vectors is taken, for each operator, so that operators of one shape and of the
transposed one go together. One leading dimension counts the operators: vectors are ``(L, n)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .convolution import is_thin


class Gram(Protocol):
    """A symmetric positive semidefinite map for each of L operators."""

    on_domain: list[bool]
    """For each operator, whether it is A^T A, on inputs, or A A^T, on outputs."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """The products with vectors of shape ``(L, n)``."""

    def across(self, vectors: Tensor) -> Tensor:
        """A or A^T times vectors of shape ``(L, n)``, on the other side: ``(L, m)``."""


def is_on_domain(weight: Tensor) -> bool:
    """Whether a weight's inputs are no longer than its outputs."""
    return weight.shape[1] <= weight.shape[0]


def sides(
    on_domain: Sequence[bool], us: Sequence[Tensor], vs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The vectors that Gram maps act on, ``(L, n)``, and those of the other side, ``(L, m)``."""
    pairs = [(v, u) if direct else (u, v) for direct, u, v in zip(on_domain, us, vs, strict=True)]
    near, far = (torch.stack(side) for side in zip(*pairs, strict=True))
    return near, far


class MatrixGram:
    """Of matrices.

    Args:
        weights: shape ``(out, in)`` or transposed each.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.on_domain = [is_on_domain(weight) for weight in weights]
        pairs = zip(weights, self.on_domain, strict=True)
        self.matrices = torch.stack([w if on_domain else w.mT for w, on_domain in pairs])

    def __call__(self, vectors: Tensor) -> Tensor:
        return (self.matrices.mT @ self.across(vectors)[..., None]).squeeze(-1)

    def across(self, vectors: Tensor) -> Tensor:
        return (self.matrices @ vectors[..., None]).squeeze(-1)


class ThinConvolutionGram:
    r"""Of convolutions of few channels on one side, which never visits the other side.

    With U the map of an image to its k x k patches, A = K U and :math:`A^T A = U^T (K^T K)\, U`,
    where the kernel's Gram matrix has only ``(channels k k)^2`` entries.

    Args:
        weights: shape ``(out, in, k, k)`` each, one of the channel numbers small, or transposed.
        input_size: height and width of the images.
    """

    def __init__(self, weights: Sequence[Tensor], input_size: tuple[int, int]) -> None:
        self.on_domain = [is_on_domain(weight) for weight in weights]
        self.input_size = input_size
        self.size = weights[0].shape[-1]
        self.kernels = _expanding(weights).flatten(2)
        self.matrices = self.kernels.mT @ self.kernels

    def __call__(self, vectors: Tensor) -> Tensor:
        products = self.matrices @ self._patches(vectors)
        return F.fold(products, self.input_size, self.size, padding=self.size // 2).flatten(1)

    def across(self, vectors: Tensor) -> Tensor:
        return (self.kernels @ self._patches(vectors)).flatten(1)

    def _patches(self, vectors: Tensor) -> Tensor:
        images = vectors.unflatten(1, (-1, *self.input_size))
        return F.unfold(images, self.size, padding=self.size // 2)


class ConvolutionGram:
    """Of convolutions of many channels.

    Args:
        weights: shape ``(out, in, k, k)`` or transposed each.
        input_size: height and width of the images.
    """

    def __init__(self, weights: Sequence[Tensor], input_size: tuple[int, int]) -> None:
        self.on_domain = [is_on_domain(weight) for weight in weights]
        self.input_size = input_size
        kernels = _expanding(weights)
        self.kernels = kernels.flatten(0, 1)
        self.adjoint = kernels.transpose(1, 2).flip(-2, -1).flatten(0, 1)
        self.number = len(weights)

    def __call__(self, vectors: Tensor) -> Tensor:
        return self._convolved(self.across(vectors), self.adjoint)

    def across(self, vectors: Tensor) -> Tensor:
        return self._convolved(vectors, self.kernels)

    def _convolved(self, vectors: Tensor, kernels: Tensor) -> Tensor:
        images = vectors.view(1, -1, *self.input_size)
        padding = kernels.shape[-1] // 2
        images = F.conv2d(images, kernels, padding=padding, groups=self.number)
        return images.reshape(self.number, -1)


def convolution_gram(weights: Sequence[Tensor], input_size: tuple[int, int]) -> Gram:
    """The map for convolutions of shape ``(out, in, k, k)`` or transposed each."""
    outputs, inputs, size, _ = weights[0].shape
    thin = is_thin(outputs, inputs, size) or is_thin(inputs, outputs, size)
    return (ThinConvolutionGram if thin else ConvolutionGram)(weights, input_size)


def _expanding(weights: Sequence[Tensor]) -> Tensor:
    """Kernels to at least as many channels, ``(L, out, in, k, k)``; of some, the adjoint's."""
    return torch.stack(
        [
            weight if is_on_domain(weight) else weight.transpose(0, 1).flip(-2, -1)
            for weight in weights
        ]
    )


def largest_eigenvectors(gram: Gram, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate the largest eigenvalue and its vector in a Krylov space (Lanczos, Ritz).

    Args:
        gram: the map.
        start: the vectors to start from, shape ``(L, n)``.
        steps: number of products, at most n.

    Returns:
        The vectors, ``(L, n)``; the values, ``(L,)``; and how far the last step raised them,
        ``(L,)``.
    """
    basis, images = [unit(start)], list[Tensor]()
    for k in range(1, steps + 1):
        images.append(gram(basis[-1]))
        if k < steps:
            basis.append(_next_basis_vector(torch.stack(basis, dim=1), images[-1]))
    vectors = torch.stack(basis, dim=1)
    projected = vectors @ torch.stack(images, dim=1).mT
    values, combinations = torch.linalg.eigh(projected)
    largest = values[:, -1]
    before = torch.linalg.eigvalsh(projected[:, :-1, :-1])[:, -1] if len(basis) > 1 else largest
    return (combinations[:, None, :, -1] @ vectors).squeeze(1), largest, largest - before


def _next_basis_vector(basis: Tensor, vector: Tensor) -> Tensor:
    """``vector`` made orthogonal to the basis, of unit length; zero if the basis spans it."""
    size = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    column = vector[..., None]
    for _ in range(2):  # the second sweep removes what rounding left of the first
        column = torch.baddbmm(column, basis.mT, basis @ column, alpha=-1)
    vector = column.squeeze(-1)
    rest = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    negligible = 10 * torch.finfo(vector.dtype).eps * size.clamp_min(1e-30)
    return torch.where(rest > negligible, vector / rest, 0)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, shape ``(L, n)``; zero stays zero."""
    size = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / size.clamp_min(torch.finfo(vectors.dtype).tiny)
