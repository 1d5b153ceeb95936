"""Record intermediate images of a composition, as features for a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.distributions import Transform

Features = dict[torch.Size, Tensor]

_RECORDINGS: ContextVar[tuple[Features, ...]] = ContextVar("recordings", default=())


@contextmanager
def image_features() -> Iterator[Features]:
    """Context manager that records the intermediate images of every composition.

    For each image size (H, W) it keeps the last output of a transform with parameters, among the
    compositions that are evaluated in the forward direction. For a flow with several scales these
    are the images at the end of each scale.

    Yields:
        The images, each of shape ``(*batch, C, H, W)``, by (H, W), in the order in which the
        sizes occur.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock, ResidualFlow
        >>> from pyro_resflow.transforms import image_features, initialize
        >>> flow = ResidualFlow((1, 8, 8), blocks=(2, 2), network=ConvBlock(16))
        >>> initialize(flow, torch.rand(16, 1, 8, 8))
        >>> with image_features() as features:
        ...     z, ladj = flow.inv.call_and_ladj(torch.rand(5, 1, 8, 8))
        >>> [tuple(image.shape) for image in features.values()]
        [(5, 1, 8, 8), (5, 4, 4, 4)]
    """
    features: Features = {}
    token = _RECORDINGS.set((*_RECORDINGS.get(), features))
    try:
        yield features
    finally:
        _RECORDINGS.reset(token)


def is_recording() -> bool:
    """Whether features are being recorded."""
    return bool(_RECORDINGS.get())


def record(part: Transform, image: Tensor) -> None:
    """Record the output of a transform, if that is a learned transform of images."""
    if _is_learned_image_transform(part):
        for features in _RECORDINGS.get():
            features[image.shape[-2:]] = image


def _is_learned_image_transform(part: Transform) -> bool:
    if not isinstance(part, nn.Module) or part.codomain.event_dim != 3:
        return False
    return next(part.parameters(), None) is not None
