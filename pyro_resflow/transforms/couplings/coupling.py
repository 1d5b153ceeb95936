"""Coupling layers: one half of an event gives the parameters of a map of the other half."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ...linearization import flatten_batch
from ...tracing import called_back, tracing_state
from ..core.checks import check_dtype, check_event_shape
from ..core.conditional import ConditionalBijection, ConditionedTransform, check_context
from ..core.one_pass_transform import OnePassTransform
from .maps import ElementwiseMap
from .masks import Mask

Direction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""One direction of an elementwise map: entries and parameters to entries and log-slopes."""


class CouplingTransform(OnePassTransform):
    """Value, inverse and log-determinant of a coupling, with or without a context.

    Subclasses provide the mask, the elementwise map, and the conditioner's output for the kept
    half.
    """

    @property
    def passes(self) -> tuple[str, str]:
        """How a call and the inverse are computed: as the elementwise map's directions are."""
        return self._elementwise.passes

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._change_half("x", x, self._elementwise.forward)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._change_half("y", y, self._elementwise.inverse)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def _change_half(self, name: str, x: Tensor, change: Direction) -> tuple[Tensor, Tensor]:
        """Change one half of x; return the event and its log-slopes, summed over the event."""
        check_event_shape(name, x, self._mask.event_shape)
        check_dtype(name, x, self)
        x = x.expand(self.forward_shape(x.shape))
        flat, batch_shape = flatten_batch(x, len(self._mask.event_shape))
        kept, changed = self._mask.split(flat)
        raw = self._conditioner(kept, batch_shape)
        parameters = self._per_entry(raw, changed).to(x.dtype)
        if tracing_state() is not None:  # the inverse may iterate
            changed, log_slopes = called_back(change, changed, parameters)
        else:
            changed, log_slopes = change(changed, parameters)
        ladj = log_slopes.flatten(1).sum(1).reshape(batch_shape)
        return self._mask.merge(kept, changed).reshape(x.shape), ladj

    def _per_entry(self, raw: Tensor, changed: Tensor) -> Tensor:
        """Check the conditioner's output and reshape it to ``(N, num_parameters, *changed)``."""
        count = self._elementwise.num_parameters
        expected = (len(changed), count * changed.shape[1], *changed.shape[2:])
        if raw.shape != expected:
            raise ValueError(
                f"net: expected an output of shape {expected}, that is {count} parameters for "
                f"each of {changed.shape[1]} changed channels, got {tuple(raw.shape)}."
            )
        return raw.unflatten(1, (count, changed.shape[1]))

    @property
    def _mask(self) -> Mask:
        raise NotImplementedError

    @property
    def _elementwise(self) -> ElementwiseMap:
        raise NotImplementedError

    def _conditioner(self, kept: Tensor, batch_shape: torch.Size) -> Tensor:
        """The network's output for the kept half, shape ``(N, parameters * channels, *rest)``."""
        raise NotImplementedError


class Coupling(CouplingTransform):
    r"""Change one half of each event entry by entry, given the other half.

    :math:`(a, b) \mapsto (a, m(b; n(a)))` with a network n and an increasing elementwise map m.
    Both directions evaluate the network once. The log-determinant is the sum of the log-slopes
    of m.

    :class:`AffineMap` (except with Glow's :class:`SigmoidScale`) and :class:`LogisticMixtureMap`
    are the identity where the network returns zeros. With such a map, a network whose last layer
    is zero makes the coupling start as the identity.

    Args:
        mask: splits an event into the half that is kept and the half that is changed:
            :class:`Checkerboard`, :class:`ChannelHalves`, :class:`Columns` or :class:`Rows`.
        elementwise: the map m of the changed half: :class:`AffineMap` or
            :class:`LogisticMixtureMap`.
        net: the conditioner n, any module from ``(N, *mask.kept_shape)`` to
            ``(N, elementwise.num_parameters * C, *rest)`` where ``(C, *rest)`` is
            ``mask.changed_shape``. Its output holds the first parameter of all channels, then the
            second, and so on.
        cache_size: 0 or 1.

    Raises:
        ValueError: when called, if the input or the network's output has a wrong shape.
        ConvergenceError: when inverted, if the elementwise map's solver does not converge.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.2.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import AffineMap, ChannelHalves, Coupling
        >>> mask = ChannelHalves((4, 8, 8))
        >>> t = Coupling(mask, AffineMap(), torch.nn.Conv2d(2, 2 * 2, 3, padding=1))
        >>> y, ladj = t.call_and_ladj(torch.randn(7, 4, 8, 8))
        >>> ladj.shape
        torch.Size([7])
    """

    def __init__(
        self, mask: Mask, elementwise: ElementwiseMap, net: nn.Module, *, cache_size: int = 1
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.mask = mask
        self.elementwise = elementwise
        self.net = net

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.mask.event_shape))

    codomain = domain

    @property
    def _mask(self) -> Mask:
        return self.mask

    @property
    def _elementwise(self) -> ElementwiseMap:
        return self.elementwise

    def _conditioner(self, kept: Tensor, batch_shape: torch.Size) -> Tensor:
        return self.net(kept)


class ConditionalCoupling(ConditionalBijection):
    """A coupling whose network also takes a context: a vector, or an image's feature maps.

    ``condition(c)`` returns the coupling at a context of shape ``(*batch, *context_shape)``; its
    batch dimensions broadcast with those of x.

    Args:
        mask: see :class:`Coupling`.
        elementwise: see :class:`Coupling`.
        net: the conditioner, ``net(kept, context)`` with one context per sample; see
            :class:`Coupling`.
        context_shape: ``(context_dim,)``, or ``(C, H, W)`` for feature maps.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import AffineMap, Checkerboard, ConditionalCoupling
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(1 + 3, 2 * 1, 3, padding=1)
        ...
        ...     def forward(self, kept, context):
        ...         return self.conv(torch.cat([kept, context], dim=1))
        >>> t = ConditionalCoupling(Checkerboard((1, 8, 8)), AffineMap(), Net(), (3, 8, 4))
        >>> t.condition(torch.randn(7, 3, 8, 4))(torch.randn(7, 1, 8, 8)).shape
        torch.Size([7, 1, 8, 8])
    """

    def __init__(
        self,
        mask: Mask,
        elementwise: ElementwiseMap,
        net: nn.Module,
        context_shape: Sequence[int],
    ) -> None:
        super().__init__()
        self.mask = mask
        self.elementwise = elementwise
        self.net = net
        self.context_shape = torch.Size(context_shape)
        self.context_event_dim = len(self.context_shape)

    @property
    def passes(self) -> tuple[str, str]:
        """How a call and the inverse are computed: as the elementwise map's directions are."""
        return self.elementwise.passes

    @property
    def domain(self) -> constraints.Constraint:
        """Real tensors with the mask's event dimensions."""
        return constraints.independent(constraints.real, len(self.mask.event_shape))

    codomain = domain

    def condition(self, context: Tensor) -> ConditionedCoupling:
        """The coupling at a context.

        Args:
            context: shape ``(*batch, *context_shape)``.

        Raises:
            ValueError: if the context has another shape.
        """
        check_context(context, self.context_shape, self)
        return ConditionedCoupling(self, context)


class ConditionedCoupling(ConditionedTransform, CouplingTransform):
    """A conditional coupling at one context; made by ``condition``."""

    @property
    def _mask(self) -> Mask:
        return self.conditional.mask

    @property
    def _elementwise(self) -> ElementwiseMap:
        return self.conditional.elementwise

    def _conditioner(self, kept: Tensor, batch_shape: torch.Size) -> Tensor:
        return self.conditional.net(kept, self._flat_context(batch_shape))
