"""A log-determinant that has yet to be computed, and what it can be computed together with."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...logdet import LogDetEstimator, SpectralFunction
from ...nn.networks.stacked import Stackable


class StackKey(NamedTuple):
    """Equal for blocks whose log-determinants can be computed in one stack.

    Attributes:
        layout: the layout of the network, see :class:`pyro_resflow.nn.networks.stacked.Stackable`.
        settings: the estimator with its settings.
        features: the number of features of a sample that an estimate holds, in all hidden layers.
    """

    layout: Hashable
    settings: Hashable
    features: int


class Deferred(NamedTuple):
    """A log-determinant that has yet to be computed.

    Attributes:
        logdet: the estimator.
        net: the network.
        inputs: the tensors from which its Jacobian follows.
        function: f, see :class:`pyro_resflow.logdet.LogDetEstimator`.
        batch_shape: the shape of the result.
        x: gives the event shape, dtype and device.
    """

    logdet: LogDetEstimator
    net: Stackable
    inputs: Sequence[Tensor]
    function: SpectralFunction
    batch_shape: torch.Size
    x: Tensor
