"""Marginal Gaussianization as a NumPyro transform."""

from __future__ import annotations

import math
from typing import Any

import torch

from ... import transforms
from ...extras import extra
from .layers import array
from .translated import Flattened, OnePassTransform
from .translation import to_numpyro

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array
    from jax.scipy.special import erfc, ndtri
    from numpyro.distributions import constraints
    from numpyro.distributions.util import sum_rightmost


class MarginalGaussianizationTransform(OnePassTransform):
    """y = the normal quantile of F(x) for each entry, with F piecewise linear on [0, 1].

    Args:
        below: the mass below each bin, shape ``(F, bins)``.
        above: the mass above each bin, of the same shape.
        mass: the mass of each bin, of the same shape.
        feature_shape: the shape of the features, F in all; see
            :class:`pyro_resflow.transforms.MarginalGaussianization`.
        event_dim: number of event dimensions, over which the log-determinant is summed.
    """

    def __init__(
        self,
        below: Array,
        above: Array,
        mass: Array,
        feature_shape: tuple[int, ...],
        event_dim: int,
    ) -> None:
        self.below = below
        self.above = above
        self.mass = mass
        self.feature_shape = feature_shape
        self.event_dim = event_dim

    @property
    def domain(self) -> Any:
        return constraints.independent(constraints.real, self.event_dim)

    codomain = domain

    def forward(self, x: Array) -> tuple[Array, Array]:
        bins = self.mass.shape[1]
        position = x * bins
        index = jnp.clip(jnp.floor(jax.lax.stop_gradient(position)), 0, bins - 1)
        within = position - index
        inside = jnp.clip(within, 0, 1)
        below, above, mass = self._at(index.astype(int))
        lower, upper = below + mass * inside, above + mass * (1 - inside)
        y = ndtri(jnp.minimum(lower, upper))
        y = jnp.where(lower <= upper, y, -y)
        log_slope = _log_slope(mass, y)
        return y + (within - inside) * jnp.exp(log_slope), self._ladj(log_slope)

    def backward(self, y: Array) -> tuple[Array, Array]:
        ends = (ndtri(self.below[:, 0]), -ndtri(self.above[:, -1]))
        inside = jnp.clip(y, *(self._broadcastable(end) for end in ends))
        index = self._bin_of(jax.lax.stop_gradient(inside))
        below, above, mass = self._at(index)
        tail = _tail(inside)
        within = jnp.where(inside < 0, (tail - below) / mass, 1 - (tail - above) / mass)
        log_slope = _log_slope(mass, inside)
        x = index + within + (y - inside) * jnp.exp(-log_slope)
        return x / self.mass.shape[1], self._ladj(log_slope)

    def _broadcastable(self, features: Array) -> Array:
        ones = [1] * (self.event_dim - len(self.feature_shape))
        return features.reshape(*self.feature_shape, *ones)

    def _at(self, index: Array) -> tuple[Array, Array, Array]:
        """The masses below, above and inside bins of the shape of the input."""
        number, bins = self.mass.shape
        index = index + self._broadcastable(bins * jnp.arange(number))
        return self.below.ravel()[index], self.above.ravel()[index], self.mass.ravel()[index]

    def _bin_of(self, y: Array) -> Array:
        """The bin of each x from its image y; of the shape of y."""
        number, bins = self.mass.shape
        shared = math.prod(y.shape[y.ndim - self.event_dim + len(self.feature_shape) :])
        features = y.reshape(-1, number, shared)
        rows = jnp.moveaxis(features, 1, 0).reshape(number, -1)
        search = jax.vmap(lambda edges, tails: jnp.searchsorted(edges, tails, side="right"))
        from_below = search(self.below, _tail(rows)) - 1
        from_above = bins - search(self.above[:, ::-1], _tail(rows))
        index = jnp.clip(jnp.where(rows < 0, from_below, from_above), 0, bins - 1)
        by_sample = jnp.moveaxis(index.reshape(number, features.shape[0], -1), 0, 1)
        return by_sample.reshape(y.shape)

    def _ladj(self, log_slope: Array) -> Array:
        return sum_rightmost(log_slope + math.log(self.mass.shape[1]), self.event_dim)

    def tree_flatten(self) -> Flattened:
        static = {"feature_shape": self.feature_shape, "event_dim": self.event_dim}
        return (self.below, self.above, self.mass), (("below", "above", "mass"), static)


def _tail(y: Array) -> Array:
    """The mass of the standard normal beyond y, on the side of its sign."""
    return 0.5 * erfc(jnp.abs(y) * math.sqrt(0.5))


def _log_slope(mass: Array, y: Array) -> Array:
    """The log of dy/dx at y, for x in units of a bin."""
    return jnp.log(mass) + 0.5 * y**2 + 0.5 * math.log(2 * math.pi)


@to_numpyro.register
@torch.no_grad()
def _marginal_gaussianization(
    flow: transforms.MarginalGaussianization,
) -> MarginalGaussianizationTransform:
    if not bool(flow.initialized):
        raise ValueError(
            "flow: expected an initialised flow, got one whose MarginalGaussianization is not "
            "initialised; call its fit(images), or pyro_resflow.transforms.initialize(flow, data)."
        )
    below, above, mass = map(array, flow.tables())
    return MarginalGaussianizationTransform(
        below, above, mass, tuple(flow.feature_shape), flow.domain.event_dim
    )
