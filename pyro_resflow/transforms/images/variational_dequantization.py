"""Variational dequantization: learned noise within each pixel's bin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from ...linearization import flatten_batch
from ...nn import GatedAttentionConditioner, GatedEncoder
from ..core.conditional import ConditionalCompose, ConditionedTransform, check_context
from ..core.one_pass_transform import OnePassTransform
from ..couplings.masks import Checkerboard, Mask
from ..couplings.step import CouplingStep
from .dequantization import ConditionedUniformDequantization, Dequantization, rounding_margin
from .noise import Entrywise, EntrywiseNoise


class VariationalDequantization(Dequantization):
    r"""Learned noise in each pixel's bin: ``condition(x)`` maps noise to :math:`v = (x + u)/bins`.

    Couplings conditional on features of the image x transform standard normal noise, and a sigmoid
    maps the result to u. The distribution of u depends on the image, and its entries may depend on
    each other. Its density is exact. A flow fitted to v need not spread its density evenly over
    each bin.

    The sigmoid's range is :math:`(\delta, 1 - \delta)`, with a :math:`\delta` of the size of the
    rounding error. This keeps v in its bin after rounding, and the log-determinant is that of the
    map as computed.

    Args:
        event_shape: ``(C, H, W)``.
        bins: number of grey levels; pixels are integers 0 .. bins - 1.
        couplings: number of coupling steps.
        step: recipe of each step; by default Flow++'s step for CIFAR-10 with 2 blocks.
        features: recipe of the network that computes features of the image.
        mask: builds a coupling's mask from the event shape and a parity: :class:`Checkerboard`
            (default), or :class:`Columns` as in the authors' code.

    Raises:
        ValueError: for fewer than two grey levels or fewer than one coupling, and by
            ``condition`` for images of another shape.

    Reference:
        Ho et al., Flow++, 2019, section 3.1 and the authors' code.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import GatedAttentionConditioner, GatedEncoder
        >>> from pyro_resflow.transforms import CouplingStep, VariationalDequantization
        >>> dequantize = VariationalDequantization(
        ...     (1, 4, 4),
        ...     256,
        ...     step=CouplingStep(GatedAttentionConditioner(channels=8, blocks=1)),
        ...     features=GatedEncoder(channels=4, blocks=1),
        ... )
        >>> x = torch.randint(0, 256, (7, 1, 4, 4))
        >>> v = dequantize.distribution(x).sample()
        >>> bool(((v * 256).floor() == x).all())
        True
    """

    domain = constraints.independent(constraints.real, 3)

    def __init__(
        self,
        event_shape: Sequence[int],
        bins: int,
        couplings: int = 4,
        *,
        step: CouplingStep | None = None,
        features: GatedEncoder | None = None,
        mask: Callable[[Sequence[int], int], Mask] = Checkerboard,
    ) -> None:
        super().__init__(bins)
        if couplings < 1:
            raise ValueError(f"couplings: expected at least one, got {couplings}.")
        self.event_shape = torch.Size(event_shape)
        step = step if step is not None else CouplingStep(GatedAttentionConditioner(blocks=2))
        features = features if features is not None else GatedEncoder()
        masks = [mask(self.event_shape, parity % 2) for parity in range(couplings)]
        self.mask = masks[0]
        example = torch.empty(self.event_shape, device="meta")
        self.features = features(self._at_conditioner_size(example).shape)
        self.flow = ConditionalCompose(
            [step.conditional(each, features.channels) for each in masks]
        )

    def noise(self, x: Tensor) -> dist.TorchDistribution:
        """Standard normal noise for images of shape ``(*batch, C, H, W)``."""
        like = next(self.parameters())
        zeros = torch.zeros(x.shape, dtype=like.dtype, device=x.device)
        entries = dist.Normal(zeros, torch.ones_like(zeros), validate_args=False)
        return EntrywiseNoise(entries, 3, validate_args=False)

    def condition(self, context: Tensor) -> ConditionedVariationalDequantization:
        """The transform of noise given the images ``context`` of shape ``(*batch, C, H, W)``.

        Raises:
            ValueError: if the images have another shape.
        """
        check_context(context, self.event_shape)
        return ConditionedVariationalDequantization(self, context)

    def image_features(self, images: Tensor) -> Tensor:
        """Feature maps of images ``(*batch, C, H, W)``, the context of the couplings."""
        like = next(self.parameters())
        centred = (2 * images.to(like.dtype) + 1) / self.bins - 1
        flat, batch_shape = flatten_batch(self._at_conditioner_size(centred), 3)
        features = self.features(flat)
        return features.reshape(*batch_shape, *features.shape[1:])

    def _at_conditioner_size(self, images: Tensor) -> Tensor:
        """Stack the halves of images as channels if they have one size; else return the images."""
        size = CouplingStep.conditioner_size(self.mask)
        if size == self.event_shape[1:]:
            return images
        return torch.cat(self.mask.split(images), dim=-3)


class ConditionedVariationalDequantization(ConditionedTransform):
    """Variational dequantization given images; made by ``condition``."""

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return Entrywise(constraints.unit_interval, 3)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, ladj = self._flow().call_and_ladj(x)
        margin = rounding_margin(self.conditional.bins, logits.dtype)
        u = margin + (1 - 2 * margin) * logits.sigmoid()
        y, bin_ladj = self._within_bin().call_and_ladj(u)
        return y, ladj + _sigmoid_ladj(logits, margin) + bin_ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        u, bin_ladj = self._within_bin().inverse_and_ladj(y)
        margin = rounding_margin(self.conditional.bins, u.dtype)
        # v is rounded, so that u may lie slightly outside the sigmoid's range
        eps = torch.finfo(u.dtype).eps
        logits = ((u - margin) / (1 - 2 * margin)).clamp(eps, 1 - eps).logit()
        x, ladj = self._flow().inverse_and_ladj(logits)
        return x, self._ladj_in_bin(y, ladj + _sigmoid_ladj(logits, margin) + bin_ladj)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._ladj_in_bin(y, super().log_abs_det_jacobian(x, y))

    def _ladj_in_bin(self, y: Tensor, ladj: Tensor) -> Tensor:
        """The log-determinant where y lies in its bin, else infinity: the density is 0 there."""
        u = self._within_bin()._inverse(y)
        margin = rounding_margin(self.conditional.bins, u.dtype)
        inside = ((u > -margin) & (u < 1 + margin)).flatten(-3).all(-1)
        return torch.where(inside, ladj, torch.inf)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def _flow(self) -> OnePassTransform:
        return self.conditional.flow.condition(self.conditional.image_features(self.context))

    def _within_bin(self) -> ConditionedUniformDequantization:
        return ConditionedUniformDequantization(self.context, self.conditional.bins)


def _sigmoid_ladj(logits: Tensor, margin: float) -> Tensor:
    entries = math.log1p(-2 * margin) + F.logsigmoid(logits) + F.logsigmoid(-logits)
    return entries.sum((-3, -2, -1))
