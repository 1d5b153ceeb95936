"""NumPyro transforms that split an event into two halves."""

from __future__ import annotations

from typing import Any

from ...extras import extra
from .conditioners import Conditioner
from .halves import Halves
from .maps import ElementwiseMap
from .translated import Comparable, Flattened, OnePassTransform, backward, forward

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array
    from numpyro.distributions import constraints
    from numpyro.distributions.transforms import Transform
    from numpyro.distributions.util import sum_rightmost


class CouplingTransform(OnePassTransform):
    """Change one half of each event entry by entry, given the other half.

    Args:
        elementwise: the map of the changed half.
        net: the conditioner, which takes images with the channels in the last dimension.
        halves: the kept and the changed entries.
    """

    def __init__(self, elementwise: ElementwiseMap, net: Conditioner, halves: Halves) -> None:
        self.elementwise = elementwise
        self.net = net
        self.halves = halves

    @property
    def domain(self) -> Any:
        return constraints.independent(constraints.real, len(self.halves.event_shape))

    codomain = domain

    def forward(self, x: Array) -> tuple[Array, Array]:
        return self._change_half(x, self.elementwise.forward)

    def backward(self, y: Array) -> tuple[Array, Array]:
        return self._change_half(y, self.elementwise.inverse)

    def _change_half(self, x: Array, change: Any) -> tuple[Array, Array]:
        event_dim = len(self.halves.event_shape)
        kept, changed = (_features_last(half, event_dim) for half in self.halves.split(x))
        raw = self._raw(kept)
        parameters = raw.reshape(*raw.shape[:-1], -1, changed.shape[-1])
        changed, log_slopes = change(changed, parameters)
        halves = (_features_first(half, event_dim) for half in (kept, changed))
        return self.halves.merge(*halves), sum_rightmost(log_slopes, event_dim)

    def _raw(self, kept: Array) -> Array:
        """The conditioner's output for the kept half."""
        return self.net(kept)

    def tree_flatten(self) -> Flattened:
        return (self.elementwise, self.net), (("elementwise", "net"), {"halves": self.halves})


class ConditionedCouplingTransform(CouplingTransform):
    """A coupling whose conditioner takes a context, at one context.

    The batch dimensions of the context and of the input broadcast.

    Args:
        elementwise: see :class:`CouplingTransform`.
        net: see :class:`CouplingTransform`.
        halves: see :class:`CouplingTransform`.
        context: shape ``(*batch, *context_shape)`` with the channels in the last dimension.
        context_dim: number of the context's event dimensions.
    """

    def __init__(
        self,
        elementwise: ElementwiseMap,
        net: Conditioner,
        halves: Halves,
        context: Array,
        context_dim: int,
    ) -> None:
        super().__init__(elementwise, net, halves)
        self.context = context
        self.context_dim = context_dim

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        event_dim = len(self.halves.event_shape)
        contexts, _ = self._context_shapes()
        batch = jnp.broadcast_shapes(shape[: len(shape) - event_dim], contexts)
        return (*batch, *self.halves.event_shape)

    inverse_shape = forward_shape

    def _change_half(self, x: Array, change: Any) -> tuple[Array, Array]:
        return super()._change_half(jnp.broadcast_to(x, self.forward_shape(x.shape)), change)

    def _raw(self, kept: Array) -> Array:
        batch = kept.shape[: kept.ndim - len(self.halves.event_shape)]
        _, event = self._context_shapes()
        return self.net(kept, jnp.broadcast_to(self.context, (*batch, *event)))

    def _context_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The batch and the event dimensions of the context."""
        shape = self.context.shape
        start = len(shape) - self.context_dim
        return shape[:start], shape[start:]

    def tree_flatten(self) -> Flattened:
        children = (self.elementwise, self.net, self.context)
        static = {"halves": self.halves, "context_dim": self.context_dim}
        return children, (("elementwise", "net", "context"), static)


class ConditionalCouplingTransform(Comparable):
    """A coupling whose conditioner takes a context.

    Args:
        elementwise: see :class:`CouplingTransform`.
        net: see :class:`CouplingTransform`.
        halves: see :class:`CouplingTransform`.
        context_shape: ``(context_dim,)``, or ``(C, H, W)`` for feature maps.
    """

    def __init__(
        self,
        elementwise: ElementwiseMap,
        net: Conditioner,
        halves: Halves,
        context_shape: tuple[int, ...],
    ) -> None:
        self.elementwise = elementwise
        self.net = net
        self.halves = halves
        self.context_shape = context_shape

    def condition(self, context: Array) -> ConditionedCouplingTransform:
        """The coupling at a context of shape ``(*batch, *context_shape)``.

        Raises:
            ValueError: if the context has another shape.
        """
        context = jnp.asarray(context)
        context_dim = len(self.context_shape)
        event = context.shape[max(0, context.ndim - context_dim) :]
        if event != self.context_shape:
            raise ValueError(
                f"context: expected the last dimensions {self.context_shape}, got shape "
                f"{context.shape}."
            )
        context = _features_last(context, context_dim)
        return ConditionedCouplingTransform(
            self.elementwise, self.net, self.halves, context, context_dim
        )


def _flatten_conditional(coupling: ConditionalCouplingTransform) -> tuple[Any, Any]:
    children = (coupling.elementwise, coupling.net)
    return children, (coupling.halves, coupling.context_shape)


def _unflatten_conditional(static: Any, children: Any) -> ConditionalCouplingTransform:
    return ConditionalCouplingTransform(*children, *static)


jax.tree_util.register_pytree_node(
    ConditionalCouplingTransform, _flatten_conditional, _unflatten_conditional
)


class HalvesTransform(OnePassTransform):
    """One transform for each half of an event.

    Args:
        kept: the transform of the kept half.
        changed: the transform of the changed half.
        halves: the kept and the changed entries.
    """

    def __init__(self, kept: Transform, changed: Transform, halves: Halves) -> None:
        self.kept = kept
        self.changed = changed
        self.halves = halves

    @property
    def domain(self) -> Any:
        return constraints.independent(constraints.real, len(self.halves.event_shape))

    codomain = domain

    def forward(self, x: Array) -> tuple[Array, Array]:
        return self._transform_halves(x, forward)

    def backward(self, y: Array) -> tuple[Array, Array]:
        return self._transform_halves(y, backward)

    def _transform_halves(self, x: Array, one_pass: Any) -> tuple[Array, Array]:
        event_dim = len(self.halves.event_shape)
        results, ladjs = [], []
        for transform, half in zip((self.kept, self.changed), self.halves.split(x), strict=True):
            y, ladj = one_pass(transform, half)
            results.append(y)
            ladjs.append(sum_rightmost(ladj, event_dim - transform.domain.event_dim))
        return self.halves.merge(*results), ladjs[0] + ladjs[1]

    def tree_flatten(self) -> Flattened:
        return (self.kept, self.changed), (("kept", "changed"), {"halves": self.halves})


def _features_last(x: Array, event_dim: int) -> Array:
    return jnp.moveaxis(x, -event_dim, -1)


def _features_first(x: Array, event_dim: int) -> Array:
    return jnp.moveaxis(x, -1, -event_dim)
