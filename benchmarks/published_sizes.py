"""The sizes of the published Residual Flows.

Architectures and schedules are those of the authors' training script, which produced the figures
of the paper (Chen et al., Residual Flows for Invertible Generative Modeling, 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.logdet import StochasticEstimator
from pyro_resflow.nn import ELU


@dataclass(frozen=True)
class FlowSize:
    """The size of a flow and of its training set.

    Attributes:
        event_shape: ``(C, H, W)``.
        blocks: residual blocks at each scale.
        options: further arguments of :class:`pyro_resflow.flows.ResidualFlow`.
        bins: grey levels.
        batch: images per step.
        training_images: size of the training set; 0 if there is none.
        authors_parameters: parameters of the authors' own network, derived from their code.
    """

    event_shape: tuple[int, int, int]
    blocks: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    bins: int = 256
    batch: int = 64
    training_images: int = 0
    authors_parameters: float = float("nan")

    def build(self, logdet: StochasticEstimator, device: str) -> ResidualFlow:
        """The flow on a device, with this estimator in every block."""
        with torch.device(device):
            return ResidualFlow(self.event_shape, self.blocks, logdet=logdet, **self.options)


EPOCHS = 1000
"""The training script's default, for every data set."""

_FACTORED = {"squeeze_first": True, "factor_out": True}

PUBLISHED = {
    "MNIST": FlowSize(
        (1, 28, 28),
        (16, 16, 16),
        {"alpha": 1e-6},
        training_images=60_000,
        authors_parameters=16.6e6,
    ),
    "CIFAR-10": FlowSize(
        (3, 32, 32), (16, 16, 16), training_images=50_000, authors_parameters=25.2e6
    ),
    "ImageNet32": FlowSize(
        (3, 32, 32), (32, 32, 32), training_images=1_281_149, authors_parameters=47.1e6
    ),
    "ImageNet64": FlowSize(
        (3, 64, 64), (32, 32, 32), _FACTORED, training_images=1_281_149, authors_parameters=53.3e6
    ),
    "CelebA-HQ 256": FlowSize(
        (3, 256, 256),
        (16,) * 6,
        {**_FACTORED, "end_blocks": 0, "network": ConvBlock(activation=ELU)},
        bins=32,
        batch=8,
        training_images=27_000,
        authors_parameters=136.8e6,
    ),
}
