"""Linear layers whose infinity norm is bounded, row by row and without an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...rebuilding import Rebuildable
from ..stages import Affine, Stage, reusable
from .drawing import draw_as_linear
from .operators import LinearOperator, MatrixOperator


class InfinityNormLinear(Rebuildable, nn.Module):
    r"""Affine map :math:`W_c x + b` with :math:`\|W_c\|_\infty = \max_i \sum_j |W_{c,ij}| \le c`.

    Each row of the weight is divided by :math:`\max(1, \sum_j |W_{ij}| / c)`. The bound holds
    exactly, up to rounding, and takes no iteration. It is a bound for the largest absolute entry
    of a vector, :math:`|W_c x|_\infty \le c\,|x|_\infty`, not for its length: do not mix such
    layers with those of another norm in one network.

    Args:
        in_features: size of each input.
        out_features: size of each output.
        coefficient: c, a positive number.
        bias: whether to add b.

    Shapes: ``(*, in_features)`` to ``(*, out_features)``.

    Raises:
        ValueError: for a coefficient that is not positive.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import InfinityNormLinear
        >>> layer = InfinityNormLinear(3, 5, 0.9)
        >>> bool(layer.effective_weight().abs().sum(1).max() < 0.9001)
        True
    """

    def __init__(
        self, in_features: int, out_features: int, coefficient: float = 1.0, *, bias: bool = True
    ) -> None:
        super().__init__()
        if not coefficient > 0:
            raise ValueError(f"coefficient: expected a positive number, got {coefficient}.")
        self.in_features = in_features
        self.out_features = out_features
        self.coefficient = coefficient
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weight and bias as ``nn.Linear`` does."""
        draw_as_linear(self.weight, self.bias)

    @property
    def is_dense(self) -> bool:
        """Whether the map is the product with the weight matrix plus the bias: always."""
        return True

    def operator(self, weight: Tensor) -> LinearOperator:
        """The linear map of a weight of this layer's shape."""
        return MatrixOperator(weight)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's map at x, with the given weight and bias."""
        return F.linear(x, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x, self.effective_weight(), self.bias)

    @reusable
    def stages(self) -> list[Stage[Any]]:
        """One affine map."""
        return [Affine(self)]

    def effective_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """The weight with its rows divided by max(1, their norm / c), same shape as the weight.

        Args:
            gain: a scalar to multiply it by.
        """
        return _rows_bounded(self.weight, self.coefficient, gain)

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """The infinity norm of the effective weight, a scalar."""
        return torch.linalg.matrix_norm(self.effective_weight(), torch.inf)


def effective_weights(
    layers: Sequence[InfinityNormLinear], gains: Sequence[Tensor | float]
) -> list[Tensor]:
    """The effective weights of several layers; those of one shape are computed together.

    Args:
        layers: the layers.
        gains: a scalar for each layer.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, (layer, gain) in enumerate(zip(layers, gains, strict=True)):
        weight, method = layer.weight, getattr(layer.effective_weight, "__func__", None)
        is_alone = isinstance(gain, Tensor) or method is not InfinityNormLinear.effective_weight
        key = weight.shape, weight.dtype, weight.device, layer.coefficient, i if is_alone else gain
        groups.setdefault((is_alone, *key), []).append(i)
    found: dict[int, Tensor] = {}
    for indices in groups.values():
        layer, gain = layers[indices[0]], gains[indices[0]]
        if len(indices) == 1:
            found[indices[0]] = layer.effective_weight(gain)
        else:
            stacked = torch.stack([layers[i].weight for i in indices])
            together = _rows_bounded(stacked, layer.coefficient, gain).unbind()
            found.update(zip(indices, together, strict=True))
    return [found[i] for i in range(len(layers))]


def _rows_bounded(weights: Tensor, coefficient: float, gain: Tensor | float) -> Tensor:
    """Weights, ``(*, out, in)``, with their rows divided by max(1, norm / c), times a gain."""
    norms = torch.linalg.vector_norm(weights, 1, dim=-1, keepdim=True)
    return weights * (gain * coefficient / norms.clamp_min(coefficient))
