"""The elementwise maps of couplings in JAX."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any, NamedTuple, Protocol

import torch

from ... import transforms
from ...extras import extra
from .layers import Layer, array
from .roots import root

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array
    from jax.scipy.special import logsumexp


class ElementwiseMap(Protocol):
    """An increasing map of each entry, with separate parameters for every entry.

    Entries have shape ``(*batch, *event, C)`` and their parameters ``(*batch, *event, P, C)``.
    """

    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        """y and log dy/dx."""

    def inverse(self, y: Array, parameters: Array) -> tuple[Array, Array]:
        """x and log dy/dx at x."""


class BoundedLogScale(NamedTuple):
    """The log-scale b tanh(h / b)."""

    bound: Array

    def __call__(self, h: Array) -> Array:
        return self.bound * jnp.tanh(h / self.bound)


class LearnedLogScale(NamedTuple):
    """The log-scale a tanh(h)."""

    amplitude: Array

    def __call__(self, h: Array) -> Array:
        return self.amplitude * jnp.tanh(h)


class SigmoidScale(NamedTuple):
    """The log-scale log(m sigmoid(h + o))."""

    offset: Array
    log_factor: Array

    def __call__(self, h: Array) -> Array:
        return jax.nn.log_sigmoid(h + self.offset) + self.log_factor


class AffineMap(NamedTuple):
    """Scale and shift, y = exp(s(h)) x + b, with two parameters (h, b) for each entry."""

    log_scale: Layer

    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        """y and log dy/dx."""
        raw, shift = parameters[..., 0, :], parameters[..., 1, :]
        log_scale = self.log_scale(raw)
        return x * jnp.exp(log_scale) + shift, log_scale

    def inverse(self, y: Array, parameters: Array) -> tuple[Array, Array]:
        """x and log dy/dx at x."""
        raw, shift = parameters[..., 0, :], parameters[..., 1, :]
        log_scale = self.log_scale(raw)
        return (y - shift) * jnp.exp(-log_scale), log_scale


class LogisticMixtureMap(NamedTuple):
    """The logit of a logistic mixture's distribution function, then a scale and a shift."""

    affine: AffineMap
    minimum_log_scale: Array

    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        """y and log dy/dx."""
        affine, mixture = self._split(parameters)
        logit, log_slope = mixture.logit_and_log_slope(x)
        y, log_scale = self.affine.forward(logit, affine)
        return y, log_slope + log_scale

    def inverse(self, y: Array, parameters: Array) -> tuple[Array, Array]:
        """x and log dy/dx at x; nan for entries that cannot be inverted."""
        affine, mixture = self._split(parameters)
        logit, log_scale = self.affine.inverse(y, affine)
        x = root(mixture, logit)
        return x, mixture.logit_and_log_slope(x)[1] + log_scale

    def _split(self, parameters: Array) -> tuple[Array, LogisticMixture]:
        """The affine map's parameters, and the mixture."""
        weights, means, log_scales = jnp.split(parameters[..., 2:, :], 3, axis=-2)
        return parameters[..., :2, :], LogisticMixture(
            jax.nn.log_softmax(weights, axis=-2),
            means,
            jnp.maximum(log_scales, self.minimum_log_scale),
        )


class LogisticMixture(NamedTuple):
    """A mixture of logistic distributions for each entry, with the components in dimension -2."""

    log_weights: Array
    means: Array
    log_scales: Array

    def logit_and_log_slope(self, x: Array) -> tuple[Array, Array]:
        """The logit of the distribution function at x, and the log of its derivative."""
        z = (x[..., None, :] - self.means) * jnp.exp(-self.log_scales)
        log_below, log_above = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
        below, above = self.log_weights + log_below, self.log_weights + log_above
        logit = logsumexp(below, axis=-2) - logsumexp(above, axis=-2)
        rising = jax.nn.log_softmax(below, axis=-2) + log_above - self.log_scales
        falling = jax.nn.log_softmax(above, axis=-2) + log_below - self.log_scales
        return logit, jnp.logaddexp(logsumexp(rising, axis=-2), logsumexp(falling, axis=-2))

    def bracket(self, logit: Array) -> tuple[Array, Array]:
        """Finite bounds of the quantile: the smallest and the largest component quantile."""
        largest = jnp.finfo(logit.dtype).max / 4
        scales = jnp.minimum(jnp.exp(self.log_scales), largest)
        quantiles = jnp.clip(self.means + scales * logit[..., None, :], -largest, largest)
        return quantiles.min(axis=-2), quantiles.max(axis=-2)


@singledispatch
def to_jax_map(elementwise: Any) -> Any:
    """Translate an elementwise map of :mod:`pyro_resflow.transforms`, or its log-scale, to JAX.

    ``to_jax_map.register(MyMap, translate)`` adds a translation of your own map.

    Args:
        elementwise: an elementwise map, or a module that computes its log-scale.

    Returns:
        A pytree; for a map with methods ``forward`` and ``inverse`` like :class:`ElementwiseMap`.

    Raises:
        ValueError: for a map without a translation.
    """
    raise ValueError(
        "elementwise: expected an AffineMap or a LogisticMixtureMap, got "
        f"{type(elementwise).__name__}, which has no translation to JAX; add one with "
        "to_jax_map.register(type, function)."
    )


@to_jax_map.register
def _affine(elementwise: transforms.AffineMap) -> AffineMap:
    return AffineMap(to_jax_map(elementwise.log_scale))


@to_jax_map.register
def _mixture(elementwise: transforms.LogisticMixtureMap) -> LogisticMixtureMap:
    return LogisticMixtureMap(to_jax_map(elementwise.affine), array(elementwise.minimum_log_scale))


@to_jax_map.register
def _bounded(log_scale: transforms.BoundedLogScale) -> BoundedLogScale:
    return BoundedLogScale(array(log_scale.bound))


@to_jax_map.register
@torch.no_grad()
def _learned(log_scale: transforms.LearnedLogScale) -> LearnedLogScale:
    return LearnedLogScale(array(log_scale.amplitude))


@to_jax_map.register
def _sigmoid(log_scale: transforms.SigmoidScale) -> SigmoidScale:
    return SigmoidScale(array(log_scale.offset), array(math.log(log_scale.factor)))
