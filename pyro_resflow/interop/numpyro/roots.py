"""Quantiles of mixtures: roots of increasing functions of one variable, in JAX."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ...extras import extra

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array, lax

MAX_ITERATIONS = 300
"""Evaluations after which a root counts as not found: bisection of the whole range of a float32
takes about 280."""

ROUNDINGS = 4
"""Roundings of x, or of 1, that a bracket that counts as narrow may be wide."""


class Increasing(Protocol):
    """A pytree of coefficients that is an increasing function of each entry."""

    def logit_and_log_slope(self, x: Array) -> tuple[Array, Array]:
        """The value at x and the log of its derivative."""

    def bracket(self, logit: Array) -> tuple[Array, Array]:
        """Points between which the value is found."""


class _Search(NamedTuple):
    lower: Array
    upper: Array
    x: Array
    last_step: Array
    found: Array
    iteration: Array


@jax.custom_jvp
def root(function: Increasing, y: Array) -> Array:
    r"""x with f(x) = y, entry by entry; nan where it is not found.

    Newton's method inside a bracket; a step that leaves it, or is not half as long as the last, is
    replaced by bisection. Derivatives are those of the implicit function theorem,
    :math:`dx = (dy - \partial_\theta f\,d\theta)/f'(x)`.

    Args:
        function: f.
        y: any shape.
    """
    lower, upper = function.bracket(y)
    margin = _margin(jnp.maximum(jnp.abs(lower), jnp.abs(upper)))
    lower, upper = lower - margin, upper + margin
    x = lower / 2 + upper / 2
    start = _Search(lower, upper, x, upper / 2 - lower / 2, y != y, jnp.asarray(0))

    def unfinished(search: _Search) -> Array:
        return (search.iteration < MAX_ITERATIONS) & ~search.found.all()

    end = lax.while_loop(unfinished, lambda search: _step(function, y, search), start)
    return jnp.where(end.found & (y == y), end.x, jnp.nan)


def _step(function: Increasing, y: Array, search: _Search) -> _Search:
    value, log_slope = function.logit_and_log_slope(search.x)
    below = value < y
    lower = jnp.where(below, search.x, search.lower)
    upper = jnp.where(value > y, search.x, search.upper)
    newton = search.x + (y - value) * jnp.exp(-log_slope)
    step = jnp.abs(newton - search.x)
    good = (newton > lower) & (newton < upper) & (step < search.last_step / 2)
    target = jnp.where(good, newton, lower / 2 + upper / 2)
    margin = _margin(search.x)
    arrived = (value == y) | (upper / 2 - lower / 2 <= margin / 2) | (good & (step <= margin))
    following = jnp.where(value == y, search.x, target)
    return _Search(
        lower,
        upper,
        jnp.where(search.found, search.x, following),
        jnp.where(good, step, upper / 2 - lower / 2),
        search.found | arrived,
        search.iteration + 1,
    )


def _margin(x: Array) -> Array:
    return ROUNDINGS * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(x), 1)


@root.defjvp
def _root_jvp(
    primals: tuple[Increasing, Array], tangents: tuple[Increasing, Array]
) -> tuple[Array, Array]:
    function, y = primals
    function_dot, y_dot = tangents
    x = root(function, y)
    value_dot = jax.jvp(lambda f: f.logit_and_log_slope(x)[0], (function,), (function_dot,))[1]
    log_slope = function.logit_and_log_slope(x)[1]
    return x, (y_dot - value_dot) * jnp.exp(-log_slope)
