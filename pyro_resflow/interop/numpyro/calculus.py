r"""Jacobians of networks of vectors, and the inverse of x + g(x), in JAX."""

from __future__ import annotations

from collections.abc import Callable

from ...extras import extra
from .layers import Layer

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array, lax

MAX_ITERATIONS = 1000
"""The largest number of iterations of an inverse or a linear solve."""

ROUNDINGS = 8
"""The tolerance of a linear solve, in units of the machine epsilon. It covers the rounding of the
sums in a product with the matrix."""

DENSE_UP_TO = 128
"""The largest D for which equations with I + J are solved by factorising the matrix.

Building the matrix takes D Jacobian products and solving takes D^3 operations for each sample. For
larger D the fixed-point iteration, with one product per step, is cheaper."""

CONVERGED_WITHIN = 2
"""A residual below this many units of rounding counts as converged."""

STALLED_WITHIN = 16
"""A residual below this many units of rounding counts as converged once it no longer decreases."""

LARGEST_STRETCH = 100
"""How much larger than y a solution x may count in the unit of rounding: the inverse of x + g(x)
with a Lipschitz constant of 0.99 stretches by up to 1 / (1 - 0.99)."""


def linearized(net: Layer, x: Array) -> tuple[Array, Array]:
    """g(x) and the matrices I + J_g(x), of shape ``(*batch, D, D)``, in one pass.

    Args:
        net: g, which has to treat samples independently.
        x: shape ``(*batch, D)``.
    """
    g, jvp = jax.linearize(net, x)
    units = jnp.eye(x.shape[-1], dtype=x.dtype)
    columns = jax.vmap(lambda unit: jvp(jnp.broadcast_to(unit, x.shape)))(units)
    return g, units + jnp.moveaxis(columns, 0, -1)


@jax.custom_jvp
def invert(net: Layer, y: Array) -> Array:
    r"""Solve x + g(x) = y for x.

    Each iteration takes the Newton step or the Banach step, whichever has the smaller residual.
    For a contraction in the Euclidean norm, the Banach step always reduces the residual. For more
    than ``DENSE_UP_TO`` entries every step is a Banach step. A sample has converged if its
    residual is within ``CONVERGED_WITHIN`` units of rounding, or within ``STALLED_WITHIN`` units
    and no longer decreasing. The derivative with respect to y and the weights of g is
    :math:`dx = (I + J)^{-1}(dy - \partial_\theta g\, d\theta)`; the iterations are not
    differentiated.

    Args:
        net: g, a pytree of its weights that is called with ``(*batch, D)``.
        y: shape ``(*batch, D)``.

    Returns:
        x, shape ``(*batch, D)``; nan for samples that have not converged.
    """
    start = (y, -net(y), jnp.zeros(y.shape[:-1], bool), 0)

    def unfinished(state: tuple[Array, Array, Array, int]) -> Array:
        return (state[3] < MAX_ITERATIONS) & ~jnp.all(state[2])

    def step(state: tuple[Array, Array, Array, int]) -> tuple[Array, Array, Array, int]:
        x, residual, finished, iteration = state
        candidate, new_residual = _better_step(net, y, x, residual)
        grows = _norm(new_residual) >= _norm(residual)
        stalled = grows & _is_within_rounding(residual, x, y, STALLED_WITHIN)
        keep = (finished | stalled)[..., None]
        x = jnp.where(keep, x, candidate)
        residual = jnp.where(keep, residual, new_residual)
        diverged = ~jnp.isfinite(residual).all(-1)
        finished = keep[..., 0] | diverged | _is_within_rounding(residual, x, y, CONVERGED_WITHIN)
        return x, residual, finished, iteration + 1

    x, residual, finished, _ = lax.while_loop(unfinished, step, start)
    converged = finished & jnp.isfinite(residual).all(-1)
    return jnp.where(converged[..., None], x, jnp.nan)


@invert.defjvp
def _invert_jvp(
    primals: tuple[Layer, Array], tangents: tuple[Layer, Array]
) -> tuple[Array, Array]:
    net, y = primals
    net_dot, y_dot = tangents
    x = invert(net, y)
    g_dot = jax.jvp(lambda weights: weights(x), (net,), (net_dot,))[1]
    return x, solve(net, x, y_dot - g_dot)


def solve(net: Layer, x: Array, right: Array) -> Array:
    """Solve (I + J_g(x)) u = ``right`` for u, shape ``(*batch, D)``."""
    if x.shape[-1] <= DENSE_UP_TO:
        return _dense_solve(linearized(net, x)[1], right)
    jvp = jax.linearize(net, x)[1]
    return lax.custom_linear_solve(
        lambda u: u + jvp(u), right, _neumann_solve, transpose_solve=_neumann_solve
    )


def _neumann_solve(matvec: Callable[[Array], Array], right: Array) -> Array:
    """Solve ``matvec(u) = right`` by the iteration u <- u + (right - matvec(u)).

    It stops when the residual is within ``ROUNDINGS`` units of rounding of u.
    """
    rounding = ROUNDINGS * jnp.finfo(right.dtype).eps

    def unfinished(state: tuple[Array, Array, int]) -> Array:
        u, residual, iteration = state
        large = jnp.abs(residual).max(-1) > rounding * jnp.abs(u).max(-1)
        return (iteration < MAX_ITERATIONS) & large.any()

    def step(state: tuple[Array, Array, int]) -> tuple[Array, Array, int]:
        u, residual, iteration = state
        u = u + residual
        return u, right - matvec(u), iteration + 1

    return lax.while_loop(unfinished, step, (right, right - matvec(right), 0))[0]


def _better_step(net: Layer, y: Array, x: Array, residual: Array) -> tuple[Array, Array]:
    """The Newton or the Banach step, whichever has the smaller residual, and that residual."""
    banach = x + residual
    after_banach = y - banach - net(banach)
    if x.shape[-1] > DENSE_UP_TO:
        return banach, after_banach
    newton = x + _dense_solve(linearized(net, x)[1], residual)
    after_newton = y - newton - net(newton)
    better = (_norm(after_newton) < _norm(after_banach))[..., None]
    return jnp.where(better, newton, banach), jnp.where(better, after_newton, after_banach)


def _dense_solve(matrix: Array, right: Array) -> Array:
    return jnp.linalg.solve(matrix, right[..., None])[..., 0]


def _norm(x: Array) -> Array:
    return jnp.linalg.norm(x, axis=-1)


def _is_within_rounding(residual: Array, x: Array, y: Array, units: int) -> Array:
    """Whether each sample's residual is within some units of rounding, shape ``y.shape[:-1]``.

    The unit is the machine epsilon times the largest of 1, the entries of y and the entries of x,
    where x counts up to ``LARGEST_STRETCH`` times the others.
    """
    scale = jnp.abs(y).max(-1).clip(1)
    largest = jnp.maximum(scale, jnp.minimum(jnp.abs(x).max(-1), LARGEST_STRETCH * scale))
    return jnp.abs(residual).max(-1) <= units * jnp.finfo(y.dtype).eps * largest
