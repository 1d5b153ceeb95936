"""Transforms of NumPyro by contractions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

from ...extras import extra
from .calculus import call_and_ladj, cayley_ladj, invert
from .layers import Chain, ConditionalNetwork, Layer, Negative

with extra("numpyro"):
    import jax.numpy as jnp
    from jax import Array
    from jax.tree_util import tree_leaves, tree_structure
    from numpyro.distributions import constraints
    from numpyro.distributions.transforms import (
        AffineTransform,
        ComposeTransform,
        IndependentTransform,
        Transform,
    )

SQRT_2 = math.sqrt(2)


class ContractionTransform(Transform):
    """What transforms of vectors by a contraction g have in common.

    Args:
        net: g, from :func:`to_jax`.

    Shapes: ``(*batch, D)`` in and out; the batch dimensions of a context broadcast with the
    input's.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, net: Chain) -> None:
        self.net = net

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        batch = jnp.broadcast_shapes(shape[:-1], self.net.batch_shape)
        return (*batch, *shape[-1:])

    inverse_shape = forward_shape

    def tree_flatten(self) -> tuple[tuple[Chain], tuple[tuple[str], dict[str, Any]]]:
        return (self.net,), (("net",), {})

    def eq(self, other: object, static: bool = False) -> Any:
        if type(other) is not type(self):
            return False
        tree: Any = tree_structure(self.net)
        if tree != tree_structure(other.net):
            return False
        pairs = list(zip(tree_leaves(self.net), tree_leaves(other.net), strict=True))
        if static:
            return all(a is b for a, b in pairs)
        return jnp.stack([jnp.array_equal(a, b) for a, b in pairs]).all()

    def _aligned(self, x: Array) -> Array:
        """x at the shape of the result, and in the type that the weights bring it to."""
        x = jnp.asarray(x, jnp.result_type(x, *tree_leaves(self.net)))
        return jnp.broadcast_to(x, self.forward_shape(x.shape))


class ResidualTransform(ContractionTransform):
    r"""NumPyro's :math:`y = x + g(x)` of a contraction g on vectors.

    The log-determinant is exact, from the whole Jacobian. The inverse iterates until nothing but
    rounding is left, and is nan where it is not found; its derivatives are those of the implicit
    function theorem.

    Args:
        net: g, see :class:`ContractionTransform`.
    """

    def __call__(self, x: Array) -> Array:
        x = self._aligned(x)
        return x + self.net(x)

    def _inverse(self, y: Array) -> Array:
        return invert(self.net, self._aligned(y))

    def call_with_intermediates(self, x: Array) -> tuple[Array, Array]:
        """y, and log|det(dy/dx)| from the same pass."""
        return call_and_ladj(self.net, self._aligned(x))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """log|det(dy/dx)| at x, shape ``x.shape[:-1]``."""
        if intermediates is not None:
            return intermediates
        return call_and_ladj(self.net, self._aligned(x))[1]


class MonotoneTransform(ContractionTransform):
    r"""NumPyro's :math:`y = \sqrt 2\,w - x` with :math:`w + g(w) = \sqrt 2\,x`.

    Both directions iterate, see :class:`ResidualTransform`. The log-determinant is exact, at
    :math:`w = (x + y)/\sqrt 2`.

    Args:
        net: g, see :class:`ContractionTransform`.
    """

    def __call__(self, x: Array) -> Array:
        x = self._aligned(x)
        return SQRT_2 * invert(self.net, SQRT_2 * x) - x

    def _inverse(self, y: Array) -> Array:
        y = self._aligned(y)
        return SQRT_2 * invert(Negative(self.net), SQRT_2 * y) - y

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """log|det(dy/dx)| at the pair, shape ``x.shape[:-1]``."""
        return cayley_ladj(self.net, (self._aligned(x) + y) / SQRT_2)


class ConditionalTransform(Protocol):
    """A transform given a context; a pytree as well."""

    def condition(self, context: Array) -> Transform:
        """The transform at a context of shape ``(*batch, context_dim)``."""


class ConditionalResidualTransform(NamedTuple):
    """y = x + g(x; c), a contraction in x for every context c.

    Attributes:
        net: g, from :func:`to_jax`.
    """

    net: ConditionalNetwork

    def condition(self, context: Array) -> ResidualTransform:
        """The transform at a context of shape ``(*batch, context_dim)``."""
        return ResidualTransform(self.net.bind(jnp.asarray(context)))


class ConditionalAffine(NamedTuple):
    """Scale and shift of each entry by a context, y = exp(s(c)) x + b(c).

    Attributes:
        net: from the context to s before it is bounded, and b, side by side.
        largest_log_scale: the bound of s.
    """

    net: Layer
    largest_log_scale: Array

    def condition(self, context: Array) -> IndependentTransform:
        """The transform at a context of shape ``(*batch, context_dim)``."""
        raw, shift = jnp.split(self.net(jnp.asarray(context)), 2, axis=-1)
        log_scale = self.largest_log_scale * jnp.tanh(raw / self.largest_log_scale)
        return IndependentTransform(AffineTransform(shift, jnp.exp(log_scale)), 1)


class ConditionalInverse(NamedTuple):
    """The inverse of a conditional transform.

    Attributes:
        transform: the conditional transform.
    """

    transform: ConditionalTransform

    def condition(self, context: Array) -> Transform:
        """The inverse at a context of shape ``(*batch, context_dim)``."""
        return self.transform.condition(context).inv


class ConditionalCompose(NamedTuple):
    """Transforms one after the other, some of them conditional.

    Attributes:
        parts: the transforms.
    """

    parts: tuple[Transform | ConditionalTransform, ...]

    def condition(self, context: Array) -> ComposeTransform:
        """The composition at a context of shape ``(*batch, context_dim)``."""
        return ComposeTransform(
            [
                part if isinstance(part, Transform) else part.condition(context)
                for part in self.parts
            ]
        )
