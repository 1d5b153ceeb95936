"""Roots of increasing functions of one variable in JAX, for the quantiles of mixtures."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ...extras import extra

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array, lax

MAX_ITERATIONS = 300
"""The largest number of iterations: bisection of the whole range of float32 takes about 280."""

ROUNDINGS = 4
"""The search ends when the bracket is this many units of rounding of x, or of 1, wide."""


class Increasing(Protocol):
    """An increasing function of each entry, a pytree of its coefficients."""

    def logit_and_log_slope(self, x: Array) -> tuple[Array, Array]:
        """The value at x and the log of its derivative."""

    def bracket(self, logit: Array) -> tuple[Array, Array]:
        """Points between which the function takes the given value."""


class _Search(NamedTuple):
    lower: Array
    upper: Array
    x: Array
    last_step: Array
    found: Array
    iteration: Array


@jax.custom_jvp
def root(function: Increasing, y: Array) -> Array:
    r"""Solve f(x) = y for x, entry by entry, by Newton's method inside a bracket.

    Bisection replaces a Newton step that leaves the bracket or is longer than half of the last
    step. Derivatives follow from the implicit function theorem,
    :math:`dx = (dy - \partial_\theta f\,d\theta)/f'(x)`.

    Args:
        function: f.
        y: any shape.

    Returns:
        x, of the shape of y; nan for entries that have not converged.
    """
    lower, upper = function.bracket(y)
    margin = _tolerance(jnp.maximum(jnp.abs(lower), jnp.abs(upper)))
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
    margin = _tolerance(search.x)
    converged = (value == y) | (upper / 2 - lower / 2 <= margin / 2) | (good & (step <= margin))
    following = jnp.where(value == y, search.x, target)
    return _Search(
        lower,
        upper,
        jnp.where(search.found, search.x, following),
        jnp.where(good, step, upper / 2 - lower / 2),
        search.found | converged,
        search.iteration + 1,
    )


def _tolerance(x: Array) -> Array:
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
