"""NumPyro transforms by contractions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

from ...extras import extra
from .calculus import invert
from .layers import Layer, Negative
from .logdet import Exact, Krylov, LogDet
from .translated import Composition, Flattened, Independent, Translated, comparable

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array
    from jax.tree_util import tree_leaves, tree_map
    from numpyro.distributions import constraints
    from numpyro.distributions.transforms import (
        AffineTransform,
        Transform,
    )

SQRT_2 = math.sqrt(2)


class VectorNet(Protocol):
    """A network of vectors that is a pytree."""

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The batch dimensions of the context; empty without a context."""

    def __call__(self, x: Array, /) -> Array:
        """Evaluate the network at x, shape ``(*batch, D)``."""


class ContractionTransform(Translated):
    """Base class of transforms of vectors by a contraction g.

    Args:
        net: g, from :func:`to_jax`.
        logdet: :class:`Exact` or :class:`Krylov`; default ``Exact()``.

    Shapes: ``(*batch, D)`` in and out. The batch dimensions of the context and of the input
    broadcast.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, net: VectorNet, logdet: LogDet | None = None) -> None:
        self.net = net
        self.logdet: LogDet = logdet if logdet is not None else Exact()

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        batch = jnp.broadcast_shapes(shape[:-1], self.net.batch_shape)
        return (*batch, *shape[-1:])

    inverse_shape = forward_shape

    def tree_flatten(self) -> Flattened:
        return (self.net, self.logdet), (("net", "logdet"), {})

    def _aligned(self, x: Array) -> Array:
        """Broadcast x to the shape of the result, and promote it to the weights' dtype."""
        x = jnp.asarray(x, jnp.result_type(x, *tree_leaves(self.net)))
        return jnp.broadcast_to(x, self.forward_shape(x.shape))


class ResidualTransform(ContractionTransform):
    r"""The residual transform :math:`y = x + g(x)` by a contraction g of vectors.

    The log-determinant is exact unless another estimator is given. The inverse iterates down to
    the level of rounding, and is nan for samples that do not converge. Its derivatives follow from
    the implicit function theorem.

    Args:
        net: g, see :class:`ContractionTransform`.
        logdet: see :class:`ContractionTransform`.
    """

    def __call__(self, x: Array) -> Array:
        x = self._aligned(x)
        return x + self.net(x)

    def _inverse(self, y: Array) -> Array:
        return invert(self.net, self._aligned(y))

    def call_with_intermediates(self, x: Array) -> tuple[Array, Array]:
        """y, and log|det(dy/dx)| from the same pass."""
        x = self._aligned(x)
        g, ladj = self.logdet.residual(self.net, x)
        return x + g, ladj

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """log|det(dy/dx)| at x, shape ``x.shape[:-1]``."""
        if intermediates is not None:
            return intermediates
        return self.logdet.residual(self.net, self._aligned(x))[1]


class MonotoneTransform(ContractionTransform):
    r"""The monotone transform :math:`y = \sqrt 2\,w - x` with :math:`w + g(w) = \sqrt 2\,x`.

    Both directions iterate like the inverse of :class:`ResidualTransform`. The log-determinant is
    that of the Cayley transform of g at :math:`w = (x + y)/\sqrt 2`.

    Args:
        net: g, see :class:`ContractionTransform`.
        logdet: see :class:`ContractionTransform`.
    """

    def __call__(self, x: Array) -> Array:
        x = self._aligned(x)
        return SQRT_2 * invert(self.net, SQRT_2 * x) - x

    def _inverse(self, y: Array) -> Array:
        y = self._aligned(y)
        return SQRT_2 * invert(Negative(self.net), SQRT_2 * y) - y

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """log|det(dy/dx)| at the pair, shape ``x.shape[:-1]``."""
        return self.logdet.cayley(self.net, (self._aligned(x) + y) / SQRT_2)


class ConditionalNet(Protocol):
    """A network that depends on a context; a pytree."""

    def bind(self, context: Array) -> VectorNet:
        """The network given a context of shape ``(*batch, context_dim)``."""


class ConditionalTransform(Protocol):
    """A transform that depends on a context; a pytree."""

    def condition(self, context: Array) -> Transform:
        """The transform at a context of shape ``(*batch, context_dim)``."""


@comparable
class ConditionalResidualTransform(NamedTuple):
    """y = x + g(x; c), a contraction in x for every context c.

    Attributes:
        net: g, from :func:`to_jax`.
        logdet: see :class:`ContractionTransform`.
    """

    net: ConditionalNet
    logdet: LogDet = Exact()

    def condition(self, context: Array) -> ResidualTransform:
        """The transform at a context of shape ``(*batch, context_dim)``."""
        return ResidualTransform(self.net.bind(jnp.asarray(context)), self.logdet)


@comparable
class ConditionalAffine(NamedTuple):
    """Scale and shift each entry, given a context: y = exp(s(c)) x + b(c).

    Attributes:
        net: computes the unbounded log-scale and b from the context, concatenated.
        largest_log_scale: the bound on the absolute values of s.
    """

    net: Layer
    largest_log_scale: Array

    def condition(self, context: Array) -> Independent:
        """The transform at a context of shape ``(*batch, context_dim)``."""
        raw, shift = jnp.split(self.net(jnp.asarray(context)), 2, axis=-1)
        log_scale = self.largest_log_scale * jnp.tanh(raw / self.largest_log_scale)
        return Independent(AffineTransform(shift, jnp.exp(log_scale)), 1)


@comparable
class ConditionalInverse(NamedTuple):
    """The inverse of a conditional transform.

    Attributes:
        transform: the conditional transform.
    """

    transform: ConditionalTransform

    def condition(self, context: Array) -> Transform:
        """The inverse at a context of shape ``(*batch, context_dim)``."""
        return self.transform.condition(context).inv


@comparable
class ConditionalCompose(NamedTuple):
    """A sequence of transforms, some of them conditional.

    Attributes:
        parts: the transforms.
    """

    parts: tuple[Transform | ConditionalTransform, ...]

    def condition(self, context: Array) -> Composition:
        """The composition at a context of shape ``(*batch, context_dim)``."""
        return Composition(
            [
                part if isinstance(part, Transform) else part.condition(context)
                for part in self.parts
            ]
        )


def with_logdet(flow: Any, logdet: LogDet) -> Any:
    """Replace the log-determinant estimator of every contraction in a translated flow.

    Args:
        flow: a transform, conditional transform or distribution from :func:`to_numpyro`.
        logdet: ``Exact()``, or ``Krylov(key)``, whose key is split so that each block draws
            separate probes.

    Returns:
        A copy of the flow.

    Example:
        >>> import jax, torch
        >>> from pyro_resflow import residual_flow
        >>> from pyro_resflow.interop.numpyro import Krylov, to_numpyro, with_logdet
        >>> flow = with_logdet(to_numpyro(residual_flow(20)), Krylov(jax.random.PRNGKey(0)))
        >>> x = jax.numpy.ones((5, 20))
        >>> flow.log_abs_det_jacobian(x, flow(x)).shape
        (5,)
    """
    blocks = 0

    def replaced(part: Any) -> Any:
        nonlocal blocks
        if not _is_block(part):
            return part
        blocks += 1
        estimator = logdet
        if isinstance(logdet, Krylov):
            key = jax.random.fold_in(logdet.key, blocks)
            estimator = Krylov(key, logdet.products, logdet.probes)
        if isinstance(part, ConditionalResidualTransform):
            return part._replace(logdet=estimator)
        return type(part)(part.net, estimator)

    return tree_map(replaced, flow, is_leaf=_is_block)


def _is_block(part: Any) -> bool:
    return isinstance(part, (ContractionTransform, ConditionalResidualTransform))
