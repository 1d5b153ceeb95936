"""Image classifiers whose features can be inverted to the image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from .flows import ConvBlock
from .flows.image_flow import checked_scales
from .flows.scales import steps_by_scale
from .nn import ELU, InjectivePadding, scores_data
from .rebuilding import Rebuildable
from .solvers import FixedPointSolver
from .transforms import ActNorm, Compose, Residual
from .transforms.core.checks import check_event_shape
from .transforms.core.evaluation import inverse_value, value


class IResNetClassifier(Rebuildable, nn.Module):
    """i-ResNet classifier: injective padding, invertible residual blocks, a linear head.

    Channels of zeros are appended to the image. Each scale then has ``blocks`` pairs of an ActNorm
    and a residual block, with a squeeze between scales. The head is batch normalisation, ReLU, the
    average over pixels and a linear layer. Everything but the head is invertible. No
    log-determinant is computed.

    Args:
        event_shape: ``(C, H, W)``.
        num_classes: K.
        blocks: number of residual blocks at each scale.
        hidden_channels: width of the blocks' networks at each scale.
        padding: channels of zeros to append.
        coefficient: Lipschitz constant of each convolution.
        solver: solver of every block's inverse; default ``Anderson()``.

    Raises:
        ValueError: if the image size is not divisible by the squeezes, or if the numbers of widths
            and scales differ.

    Reference:
        Behrmann et al., Invertible Residual Networks, 2019, section 5.1.

    Example:
        >>> import torch
        >>> from pyro_resflow.classifiers import IResNetClassifier
        >>> net = IResNetClassifier((3, 8, 8), 10, blocks=(1, 1), hidden_channels=(8, 8))
        >>> x = torch.rand(16, 3, 8, 8)
        >>> net(x).shape
        torch.Size([16, 10])
        >>> torch.allclose(net.reconstruct(net.features(x)), x, atol=1e-4)
        True
    """

    def __init__(
        self,
        event_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        *,
        blocks: Sequence[int] = (7, 7, 7),
        hidden_channels: Sequence[int] = (32, 64, 128),
        padding: int = 13,
        coefficient: float = 0.9,
        solver: FixedPointSolver | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = checked_scales(event_shape, len(blocks), squeeze_first=False)
        if len(hidden_channels) != len(blocks):
            raise ValueError(
                f"hidden_channels: expected one width for each of {len(blocks)} scales, got "
                f"{tuple(hidden_channels)}."
            )
        if padding < 0:
            raise ValueError(f"padding: expected a number of channels, 0 or more, got {padding}.")
        recipes = [ConvBlock(n, activation=ELU, coefficient=coefficient) for n in hidden_channels]

        def step(shape: torch.Size, scale: int, first: bool) -> list[Transform]:
            net = recipes[scale](shape, preactivation=not first)
            return [ActNorm(shape[0], event_dim=3), Residual(net, solver=solver)]

        channels, *size = self.event_shape
        self.padding = InjectivePadding(padding)
        padded = torch.Size((channels + padding, *size))
        scales, last_shape = steps_by_scale(padded, blocks, step)
        self.body = Compose(chain.from_iterable(scales))
        self.head = nn.Sequential(
            nn.BatchNorm2d(last_shape[0]),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last_shape[0], num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The logits, shape ``(N, K)``, of images of shape ``(N, C, H, W)``."""
        return self.head(self.features(x))

    @scores_data
    def features(self, x: Tensor) -> Tensor:
        """The last features, shape ``(N, C', H', W')``, with as many entries as the padded image.

        Args:
            x: shape ``(N, C, H, W)``.
        """
        check_event_shape("x", x, self.event_shape)
        return value(self.body, self.padding(x))

    def reconstruct(self, features: Tensor) -> Tensor:
        """The image of given features: the inverse of :meth:`features`.

        Features that do not belong to any image are mapped to one too: nonzero values in the
        padding channels are dropped.

        Args:
            features: shape ``(N, C', H', W')``.
        """
        return self.padding.inverse(inverse_value(self.body, features))
