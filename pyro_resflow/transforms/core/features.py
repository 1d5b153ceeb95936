"""Images read off a composition on the way: what heads for classification look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.distributions import Transform

Features = dict[torch.Size, Tensor]

_READERS: ContextVar[tuple[Features, ...]] = ContextVar("readers", default=())


@contextmanager
def image_features() -> Iterator[Features]:
    """Within a ``with`` statement, keep the images that come out of learned transforms.

    Whatever composition is evaluated, forwards, within it: of each image size (H, W) the last
    image is kept that left a transform with parameters. For a flow with scales these are the
    images at the end of each.

    Yields:
        The images, each of shape ``(*batch, C, H, W)``, by (H, W) in the order in which the sizes
        come up.

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
    token = _READERS.set((*_READERS.get(), features))
    try:
        yield features
    finally:
        _READERS.reset(token)


def is_read() -> bool:
    """Whether features are being read."""
    return bool(_READERS.get())


def show(part: Transform, image: Tensor) -> None:
    """Keep the image that has left a transform, for those who read features."""
    if _is_learned_image_transform(part):
        for features in _READERS.get():
            features[image.shape[-2:]] = image


def _is_learned_image_transform(part: Transform) -> bool:
    if not isinstance(part, nn.Module) or part.codomain.event_dim != 3:
        return False
    return next(part.parameters(), None) is not None
