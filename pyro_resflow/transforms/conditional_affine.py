"""A scale and a shift of each entry that depend on a context."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .core.checks import check_event_shape
from .core.conditional import ConditionalBijection, ConditionedTransform, check_context
from .couplings.maps import BoundedLogScale


class ConditionalAffine(ConditionalBijection):
    r"""Scale and shift each entry, given a context: :math:`y = e^{s(c)} x + b(c)`.

    The log-scale :math:`s = \bar s\tanh(h/\bar s)` of the network's output h lies within
    :math:`\pm\bar s`, so that no context makes a scale overflow. The network's last layer starts
    at zero, so that the transform starts as the identity.

    Applied to standard normal noise, this is heteroscedastic normal regression. Between
    conditional residual blocks it normalises each context separately, where an
    :class:`pyro_resflow.transforms.ActNorm` normalises the whole batch.

    Args:
        input_dim: D, the size of the vectors.
        context_dim: size of the context.
        hidden_dims: widths of the network's hidden layers.

    Reference:
        Lu and Huang, Structured Output Learning with Conditional Generative Flows, 2020.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import ConditionalAffine
        >>> t = ConditionalAffine(2, context_dim=3).condition(torch.randn(7, 3))
        >>> x = torch.randn(7, 2)
        >>> torch.equal(t(x), x)
        True
    """

    domain = codomain = constraints.real_vector

    largest_log_scale = 5.0
    r"""The bound :math:`\bar s` on the absolute log-scales."""

    def __init__(
        self, input_dim: int, context_dim: int, hidden_dims: Sequence[int] = (64,)
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.context_dim = context_dim
        widths = [context_dim, *hidden_dims, 2 * input_dim]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)
        self._log_scale = BoundedLogScale(self.largest_log_scale)

    def condition(self, context: Tensor) -> ConditionedAffine:
        """The transform at a context.

        Args:
            context: shape ``(*batch, context_dim)``.

        Raises:
            ValueError: if the context has another size.
        """
        check_context(context, (self.context_dim,), self)
        return ConditionedAffine(self, context)

    def log_scale_and_shift(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """s(c) and b(c), each of shape ``(*batch, input_dim)``."""
        raw, shift = self.net(context).chunk(2, dim=-1)
        return self._log_scale(raw), shift


class ConditionedAffine(ConditionedTransform):
    """A conditional affine transform at one context; made by ``condition``."""

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale_and_shift("x", x)
        y = x * log_scale.exp() + shift
        return y, log_scale.sum(-1).expand(y.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale_and_shift("y", y)
        x = (y - shift) * (-log_scale).exp()
        return x, log_scale.sum(-1).expand(x.shape[:-1])

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def _log_scale_and_shift(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event_shape(name, x, (self.conditional.input_dim,))
        log_scale, shift = self.conditional.log_scale_and_shift(self.context)
        # autocast may run the network in half precision; scale and log-determinant need more
        dtype = torch.promote_types(x.dtype, log_scale.dtype)
        return log_scale.to(dtype), shift.to(dtype)
