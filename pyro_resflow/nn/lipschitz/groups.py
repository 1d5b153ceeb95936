r"""Groups of linear operators that all have one shape or its transpose.

The Gram maps :math:`A^T A` and :math:`A A^T` of an operator have the same largest eigenvalue, the
square of the largest singular value. Each operator uses the one that acts on the shorter vectors,
so that an operator and one of the transposed shape have vectors of the same length. That side of
an operator is called near, the other one far. The leading dimension counts the operators: near
vectors are ``(L, n)``, far vectors ``(L, m)`` with :math:`m \ge n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .convolution import is_thin, kernel_gradient
from .squaring import SQUARED_SIDE

MULTIPLIED_SIDE = 256
"""Largest side of a Gram matrix that is multiplied out for a Krylov space. Of eight matrices of
784x128 that takes as long as 2.5 products with the matrix and its transpose, and a space takes a
dozen; of four of 512x512 it takes as long as nine."""


class OperatorGroup(Protocol):
    """L operators that are applied together."""

    on_domain: list[bool]
    """For each operator, whether its near side is the side of its inputs."""

    def gram(self, near: Tensor) -> Tensor:
        """The product of each Gram map with its vector, ``(L, n)`` to ``(L, n)``."""

    def gram_matrices(self) -> Tensor | None:
        """The Gram maps as matrices, ``(L, n, n)``; ``None`` if they would be large."""

    def across(self, near: Tensor) -> Tensor:
        """A or A^T times near vectors: ``(L, n)`` to ``(L, m)``."""

    def outers(self, near: Tensor, far: Tensor) -> list[Tensor]:
        """The gradient of u^T A v with respect to each weight, at its near and far vectors."""


def is_on_domain(weight: Tensor) -> bool:
    """Whether a weight has at most as many inputs as outputs."""
    return weight.shape[1] <= weight.shape[0]


def near_and_far(
    on_domain: Sequence[bool], us: Sequence[Tensor], vs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The near vectors, ``(L, n)``, and the far vectors, ``(L, m)``.

    Args:
        on_domain: see :class:`OperatorGroup`.
        us: for each operator, the vector of its outputs.
        vs: for each operator, the vector of its inputs.
    """
    pairs = [(v, u) if direct else (u, v) for direct, u, v in zip(on_domain, us, vs, strict=True)]
    near, far = (torch.stack(side) for side in zip(*pairs, strict=True))
    return near, far


class MatrixGroup:
    """A group of matrices.

    Args:
        weights: each of shape ``(out, in)`` or ``(in, out)``.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.on_domain = [is_on_domain(weight) for weight in weights]

    @cached_property
    def _matrices(self) -> Tensor:
        pairs = zip(self.weights, self.on_domain, strict=True)
        return torch.stack([w if on_domain else w.mT for w, on_domain in pairs])

    @cached_property
    def _gram_matrices(self) -> Tensor:
        return torch.bmm(self._matrices.mT, self._matrices)

    def gram(self, near: Tensor) -> Tensor:
        if near.shape[1] <= MULTIPLIED_SIDE:
            return torch.bmm(self._gram_matrices, near[..., None]).squeeze(-1)
        return torch.bmm(self._matrices.mT, self.across(near)[..., None]).squeeze(-1)

    def gram_matrices(self) -> Tensor | None:
        return self._gram_matrices if self._matrices.shape[-1] <= SQUARED_SIDE else None

    def across(self, near: Tensor) -> Tensor:
        return torch.bmm(self._matrices, near[..., None]).squeeze(-1)

    def outers(self, near: Tensor, far: Tensor) -> list[Tensor]:
        products = torch.bmm(far[:, :, None], near[:, None])
        pairs = zip(products, self.on_domain, strict=True)
        return [product if on_domain else product.mT for product, on_domain in pairs]


class ThinConvolutionGroup:
    r"""A group of convolutions with few channels on one side; the Gram map uses only that side.

    Let U map an image to its k x k patches. Then A = K U and :math:`A^T A = U^T (K^T K)\, U`; the
    kernel's Gram matrix has only ``(channels k k)^2`` entries.

    Args:
        weights: each of shape ``(out, in, k, k)`` or ``(in, out, k, k)``.
        input_size: height and width of the images.
    """

    def __init__(self, weights: Sequence[Tensor], input_size: tuple[int, int]) -> None:
        self.weights = weights
        self.on_domain = [is_on_domain(weight) for weight in weights]
        self.input_size = input_size
        self.size = weights[0].shape[-1]

    @cached_property
    def _kernels(self) -> Tensor:
        return _expanding(self.weights).flatten(2)

    @cached_property
    def _gram_matrices(self) -> Tensor:
        return torch.bmm(self._kernels.mT, self._kernels)

    def gram_matrices(self) -> None:
        return None

    def gram(self, near: Tensor) -> Tensor:
        products = torch.bmm(self._gram_matrices, self._patches(near))
        return F.fold(products, self.input_size, self.size, padding=self.size // 2).flatten(1)

    def across(self, near: Tensor) -> Tensor:
        return torch.bmm(self._kernels, self._patches(near)).flatten(1)

    def _patches(self, near: Tensor) -> Tensor:
        images = near.unflatten(1, (-1, *self.input_size))
        return F.unfold(images, self.size, padding=self.size // 2)

    def outers(self, near: Tensor, far: Tensor) -> list[Tensor]:
        patches = self._patches(near)
        products = torch.bmm(far.unflatten(1, (-1, patches.shape[-1])), patches.mT)
        kernels = products.unflatten(2, (-1, self.size, self.size))
        flipped = _adjoint_kernels(kernels)
        both = zip(kernels, flipped, self.on_domain, strict=True)
        return [direct if on_domain else adjoint for direct, adjoint, on_domain in both]


class ConvolutionGroup:
    """A group of convolutions with many channels on both sides.

    Args:
        weights: each of shape ``(out, in, k, k)`` or ``(in, out, k, k)``.
        input_size: height and width of the images.
    """

    def __init__(self, weights: Sequence[Tensor], input_size: tuple[int, int]) -> None:
        self.weights = weights
        self.on_domain = [is_on_domain(weight) for weight in weights]
        self.input_size = input_size

    @cached_property
    def _kernels(self) -> tuple[Tensor, Tensor]:
        """The kernels of :meth:`across` and of its adjoint, concatenated over the operators."""
        kernels = _expanding(self.weights)
        return kernels.flatten(0, 1), _adjoint_kernels(kernels).flatten(0, 1)

    def gram_matrices(self) -> None:
        return None

    def gram(self, near: Tensor) -> Tensor:
        return self._convolved(self.across(near), self._kernels[1])

    def across(self, near: Tensor) -> Tensor:
        return self._convolved(near, self._kernels[0])

    def _convolved(self, vectors: Tensor, kernels: Tensor) -> Tensor:
        number = len(self.weights)
        images = vectors.view(1, -1, *self.input_size)
        images = F.conv2d(images, kernels, padding=kernels.shape[-1] // 2, groups=number)
        return images.reshape(number, -1)

    def outers(self, near: Tensor, far: Tensor) -> list[Tensor]:
        sides = near.unflatten(1, (-1, *self.input_size)), far.unflatten(1, (-1, *self.input_size))
        found = zip(self.weights, self.on_domain, *(side.split(1) for side in sides), strict=True)
        return [
            kernel_gradient(f, n, weight.shape)
            if on_domain
            else kernel_gradient(n, f, weight.shape)
            for weight, on_domain, n, f in found
        ]


def convolution_group(weights: Sequence[Tensor], input_size: tuple[int, int]) -> OperatorGroup:
    """Group convolutions, each of shape ``(out, in, k, k)`` or ``(in, out, k, k)``."""
    outputs, inputs, size, _ = weights[0].shape
    thin = is_thin(outputs, inputs, size) or is_thin(inputs, outputs, size)
    return (ThinConvolutionGroup if thin else ConvolutionGroup)(weights, input_size)


def _expanding(weights: Sequence[Tensor]) -> Tensor:
    """The kernels from the near to the far side of each operator, ``(L, far, near, k, k)``."""
    return torch.stack(
        [weight if is_on_domain(weight) else _adjoint_kernels(weight) for weight in weights]
    )


def _adjoint_kernels(kernels: Tensor) -> Tensor:
    """The kernels of the adjoint convolutions: channels transposed, both directions flipped."""
    return kernels.transpose(-4, -3).flip(-2, -1)
