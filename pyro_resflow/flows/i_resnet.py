"""i-ResNet for image densities (Behrmann et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributions import AffineTransform, Transform

from ..logdet import LogDetEstimator, PowerSeries
from ..nn import ELU
from ..solvers import FixedPointSolver
from ..transforms import ActNorm, Flatten, Residual, Squeeze
from .image_flow import ImageFlow, checked_scales
from .recipes import ConvBlock, NetworkRecipe
from .scales import joined, steps_by_scale


class IResNet(ImageFlow):
    r"""i-ResNet for image densities: residual blocks with a truncated power series.

    From image to noise, the flow subtracts 1/2 and squeezes. Each scale then has pairs of an
    ActNorm and a residual block. Between scales it squeezes and factors out half of the channels.
    The prior is a Gaussian with a learned mean and standard deviation for every entry, that is, an
    :class:`pyro_resflow.transforms.ActNorm` of the noise vector.

    The default estimator, ``PowerSeries(5)``, is the published one. It is biased, and its bias
    increases with the Lipschitz constant, so that ``log_prob`` is not a log-density. For an
    unbiased estimate pass ``logdet=Krylov()`` or call
    :func:`pyro_resflow.transforms.set_logdet`.

    Args:
        event_shape: ``(C, H, W)``.
        blocks: number of residual blocks at each scale.
        network: recipe of the blocks' networks; default :class:`ConvBlock` with ELU and a
            coefficient of 0.9.
        input_map: transform from pixels to the real line, in place of the subtraction of 1/2: for
            instance :class:`pyro_resflow.transforms.MarginalGaussianization`, which reads it off
            the data, or :class:`pyro_resflow.transforms.Logit`.
        squeeze_first: whether to squeeze before the first scale.
        factor_out: whether to factor out half of the channels after each scale but the last.
        logdet: estimator for every block; default ``PowerSeries(5)``.
        solver: solver for every block; default ``Anderson()``.

    Raises:
        ValueError: if the image size is not divisible by the squeezes.

    Reference:
        Behrmann et al., Invertible Residual Networks, 2019, section 5.3 and appendix.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock, IResNet
        >>> flow = IResNet((1, 8, 8), blocks=(2, 2), network=ConvBlock(16, coefficient=0.9))
        >>> d = flow.distribution()
        >>> d.log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        blocks: Sequence[int] = (16, 16, 16),
        *,
        network: NetworkRecipe | None = None,
        input_map: Transform | None = None,
        squeeze_first: bool = True,
        factor_out: bool = True,
        logdet: LogDetEstimator | None = None,
        solver: FixedPointSolver | None = None,
    ) -> None:
        shape = checked_scales(event_shape, len(blocks), squeeze_first)
        recipe = network if network is not None else ConvBlock(activation=ELU, coefficient=0.9)
        logdet = logdet if logdet is not None else PowerSeries(5)

        def step(shape: torch.Size, scale: int, first: bool) -> list[Transform]:
            net = recipe(shape, preactivation=not first)
            block = Residual(net, event_dim=3, logdet=logdet, solver=solver)
            return [ActNorm(shape[0], event_dim=3), block]

        parts = [input_map if input_map is not None else AffineTransform(-0.5, 1.0)]
        if squeeze_first:
            parts.append(Squeeze())
            shape = parts[-1].forward_shape(shape)
        scales, last_shape = steps_by_scale(shape, blocks, step, factor_out=factor_out)
        scales[-1].append(Flatten(last_shape))
        parts += [*joined(scales, shape, factor_out=factor_out), ActNorm(shape.numel())]
        super().__init__(parts, event_shape)
