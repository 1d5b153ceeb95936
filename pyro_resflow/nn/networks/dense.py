"""Densely connected networks with a known Lipschitz constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...rebuilding import Rebuildable
from ..activations import Activation, CLipSwish
from ..lipschitz.linear import LipschitzConv2d, LipschitzLinear
from ..lipschitz.operator_norm import OperatorNorm
from ..stages import Concatenate, Stage
from .chain import Chain, refuse_hooks
from .conv import checked_image_shape
from .norms import Norms, norm_per_layer
from .overriding import refuse_ignored_forward

LEAST_WEIGHT = 0.1
"""Added to both weights before they are normalized, so that neither part ever vanishes."""


class DenseConcatenation(Rebuildable, nn.Module):
    r"""Concatenate input and new features, :math:`[\eta_1 x, \eta_2 h(x)]` with :math:`|\eta|=1`.

    :math:`\eta = (\hat\eta_1, \hat\eta_2)/|\hat\eta|`, where
    :math:`\hat\eta = \mathrm{softplus}(\cdot) + 0.1` is learned. If h is a contraction, so is the
    concatenation. (The authors' code uses :math:`|\eta| = 0.98`, so that each further layer
    shrinks the bound of a network more than necessary.)

    Args:
        branch: the layers h.
        feature_dim: -1 for vectors, -3 for images.

    Raises:
        ValueError: for a branch that overrides ``forward`` alone.

    Reference:
        Perugachi-Diaz, Tomczak and Bhulai, Invertible DenseNets with Concatenated LipSwish, 2021,
        section 3.2.
    """

    def __init__(self, branch: Chain, *, feature_dim: int = -1) -> None:
        refuse_ignored_forward("branch", [branch])
        super().__init__()
        self.branch = branch
        self.feature_dim = feature_dim
        self.raw_weights = nn.Parameter(torch.zeros(2))

    def with_branch(self, branch: Chain) -> DenseConcatenation:
        """The concatenation of another branch, which shares the weights of this one.

        Args:
            branch: a network between the same features.
        """
        other = copy(self)
        other._modules = {**self._modules, "branch": branch}
        return other

    def weights(self) -> Tensor:
        """The pair (eta_1, eta_2), of length 1."""
        raw = nn.functional.softplus(self.raw_weights) + LEAST_WEIGHT
        return raw / torch.linalg.vector_norm(raw)

    def forward(self, x: Tensor) -> Tensor:
        eta = self.weights()
        return torch.cat([eta[0] * x, eta[1] * self.branch(x)], dim=self.feature_dim)

    def stages(self) -> list[Stage[Any]]:
        """One concatenation of the scaled input and the scaled features."""
        refuse_hooks("branch", {"": self.branch})
        return [Concatenate(self.weights, self.branch.stages(), self.feature_dim)]

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the Lipschitz constant, a scalar."""
        eta = self.weights()
        return (eta[0] ** 2 + (eta[1] * self.branch.lipschitz_bound()) ** 2).sqrt()


class LipschitzDenseNet(Chain):
    r"""Densely connected network with a Lipschitz constant below 1.

    ``depth`` times [linear layer to ``growth`` features, concatenated activation, concatenation
    with the input], then a linear layer back to the input's size (a 1x1 convolution for images).

    Args:
        event_shape: ``(D,)`` for vectors, ``(C, H, W)`` for images, or the integer D.
        depth: number of dense layers.
        growth: features that each dense layer adds, counted after its activation.
        kernel_size: odd side of the kernels, for images.
        activation: makes one activation per dense layer from the feature dimension.
        norm: the norm that bounds each linear layer, or one per layer; default
            ``SpectralNorm(0.98)``.
        stem: output features of an additional first linear layer; default: no such layer.

    Raises:
        ValueError: if the activation's expansion does not divide the growth, or if the event
            shape is neither that of a vector nor that of an image.

    Reference:
        Perugachi-Diaz, Tomczak and Bhulai, Invertible DenseNets with Concatenated LipSwish, 2021.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        depth: int = 3,
        growth: int = 64,
        kernel_size: int = 3,
        activation: Callable[[int], Activation] = CLipSwish,
        norm: Norms = None,
        stem: int | None = None,
    ) -> None:
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        is_image = len(shape) != 1
        if is_image:
            checked_image_shape(shape)
        feature_dim = -3 if is_image else -1
        norms = norm_per_layer(norm, depth + 1 + (stem is not None), concatenates=True)

        def linear(inputs: int, outputs: int, size: int, layer_norm: OperatorNorm) -> nn.Module:
            if is_image:
                return LipschitzConv2d(inputs, outputs, size, (shape[1], shape[2]), layer_norm)
            return LipschitzLinear(inputs, outputs, layer_norm)

        layers: list[nn.Module] = []
        features = shape[0]
        if stem is not None:
            layers.append(linear(features, stem, kernel_size, norms[0]))
            features = stem
        for layer_norm in norms[-1 - depth : -1]:
            phi = activation(feature_dim)
            if growth % phi.expansion:
                raise ValueError(
                    f"growth: expected a multiple of {phi.expansion}, the activation's "
                    f"expansion, got {growth}."
                )
            first = linear(features, growth // phi.expansion, kernel_size, layer_norm)
            layers.append(DenseConcatenation(Chain([first, phi]), feature_dim=feature_dim))
            features += growth
        layers.append(linear(features, shape[0], 1, norms[-1]))
        super().__init__(layers, event_dim=len(shape))
        self.event_shape = torch.Size(shape)
