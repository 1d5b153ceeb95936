"""Hybrid models: the density of an image and its class, in one pass."""

from __future__ import annotations

import copy

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .flows import ImageFlow
from .nn import scores_data
from .rebuilding import Rebuildable
from .transforms import ActNorm, image_features
from .transforms.core.evaluation import value
from .transforms.core.features import Features


class Hybrid(Rebuildable, nn.Module):
    r"""A flow of images with a classifier on its features: :math:`p(x, y) = p(x)\,p(y \mid x)`.

    A single pass of the flow's encoder gives the density and the features. The features are the
    last image of each size, see :func:`pyro_resflow.transforms.image_features`. Each has a head
    (3x3 convolution, ActNorm, ReLU, average over pixels); a linear layer computes the logits from
    all heads. Any :class:`pyro_resflow.flows.ImageFlow` can be used, with residual blocks or
    couplings. (The published heads read the images one step later: after the squeeze, and the last
    one after the fully connected blocks.)

    Args:
        flow: the flow of images.
        num_classes: K.
        hidden_channels: width of each head.

    Raises:
        ValueError: if no transform of images in the flow has parameters.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019, section 5.4;
        Nalisnick et al., Hybrid Models with Deep and Invertible Features, 2019.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock, ResidualFlow
        >>> from pyro_resflow.hybrid import Hybrid
        >>> flow = ResidualFlow((1, 8, 8), blocks=(2, 2), network=ConvBlock(16), alpha=None)
        >>> hybrid = Hybrid(flow, num_classes=10)
        >>> log_prob, logits = hybrid(torch.rand(16, 1, 8, 8))
        >>> log_prob.shape, logits.shape
        (torch.Size([16]), torch.Size([16, 10]))
    """

    def __init__(self, flow: ImageFlow, num_classes: int, *, hidden_channels: int = 256) -> None:
        super().__init__()
        self.flow = flow
        channels = [shape[0] for shape in feature_shapes(flow)]
        self.heads = nn.ModuleList(_head(c, hidden_channels) for c in channels)
        self.classifier = nn.Linear(hidden_channels * len(channels), num_classes)

    @scores_data
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density and the logits, from one pass of the encoder.

        Args:
            images: continuous images on [0, 1], shape ``(*batch, C, H, W)``.

        Returns:
            log p(x) in nats, shape ``(*batch,)``, and the logits of p(y|x), shape ``(*batch, K)``.
        """
        with image_features() as features:
            z, ladj = self.flow.encoder.call_and_ladj(images)
        log_prob = self.flow.distribution().base_dist.log_prob(z) + ladj
        return log_prob, self._classify(features)

    @scores_data
    def logits(self, images: Tensor) -> Tensor:
        """The logits alone, shape ``(*batch, K)``; no log-determinant is computed.

        Args:
            images: continuous images on [0, 1], shape ``(*batch, C, H, W)``.
        """
        with image_features() as features:
            value(self.flow.encoder, images)
        return self._classify(features)

    @scores_data
    def class_distribution(self, images: Tensor) -> dist.Categorical:
        """p(y|x), batch shape ``(*batch,)``, for a model that also scores the images.

        The flow caches the pass: where gradients are enabled, the next ``log_prob`` of the same
        images reuses it. Call ``backward`` once for both terms: a backward pass through the
        classes alone frees the graph that the density needs.

        Args:
            images: continuous images on [0, 1], shape ``(*batch, C, H, W)``.
        """
        self.flow.clear_cache()  # a cached pass produces no features
        with image_features() as features:
            self.flow.encoder(images)
        return dist.Categorical(logits=self._classify(features))

    def _classify(self, features: Features) -> Tensor:
        images = list(features.values())
        hidden = [
            head(image.reshape(-1, *image.shape[-3:]))
            for head, image in zip(self.heads, images, strict=True)
        ]
        logits: Tensor = self.classifier(torch.cat(hidden, dim=-1))
        return logits.reshape(*images[0].shape[:-3], self.classifier.out_features)


@torch.no_grad()
def feature_shapes(flow: ImageFlow) -> list[torch.Size]:
    """The shapes (C, H, W) of the features of a flow, in the order of the encoder.

    They are computed with a copy on the meta device, without arithmetic.

    Args:
        flow: the flow of images.

    Raises:
        ValueError: if the flow has no features.
    """
    encoder = copy.deepcopy(flow.encoder).to("meta")
    dtypes = [parameter.dtype for parameter in encoder.parameters()]
    with image_features() as features:
        encoder(torch.empty(2, *flow.event_shape, dtype=next(iter(dtypes), None), device="meta"))
    if not features:
        raise ValueError(
            f"flow: expected transforms of images with parameters, got none in "
            f"{type(flow).__name__}. A hybrid model needs features to classify."
        )
    return [image.shape[-3:] for image in features.values()]


def _head(channels: int, hidden_channels: int) -> nn.Sequential:
    """The network that maps the features of one scale to a vector."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden_channels, 3, padding=1),
        ActNorm(hidden_channels, event_dim=3, cache_size=0),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
