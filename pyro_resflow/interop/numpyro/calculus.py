r"""Jacobians of functions of vectors, and the inverse of x + g(x), in JAX."""

from __future__ import annotations

from collections.abc import Callable

from ...extras import extra
from .layers import Layer

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array, lax

MAX_ITERATIONS = 1000
"""The largest number of steps of an inverse."""

ROUNDINGS = 8
"""Units of rounding that a residual of a linear equation may keep: a sum of some products."""

DENSE_UP_TO = 128
"""Entries up to which equations with I + J are solved with the matrix itself.

Beyond, D products with D vectors and D^3 operations a sample cost more than the fixed-point
iteration takes, which needs a product a step."""


def linearized(net: Layer, x: Array) -> tuple[Array, Array]:
    """g(x) and the matrices I + J_g(x), of shape ``(*batch, D, D)``, in one pass.

    Args:
        net: g, which treats samples independently.
        x: shape ``(*batch, D)``.
    """
    g, jvp = jax.linearize(net, x)
    units = jnp.eye(x.shape[-1], dtype=x.dtype)
    columns = jax.vmap(lambda unit: jvp(jnp.broadcast_to(unit, x.shape)))(units)
    return g, units + jnp.moveaxis(columns, 0, -1)


@jax.custom_jvp
def invert(net: Layer, y: Array) -> Array:
    r"""Solve x + g(x) = y for x; nan for a sample without a solution.

    Each step is the Newton step or the Banach step, whichever has the smaller residual. For a
    contraction in the Euclidean norm, the Banach step always reduces the residual. Above
    ``DENSE_UP_TO`` entries every step is a Banach step. A sample has converged if its residual is
    within twice the rounding of y, or within sixteen times and no longer decreasing. The
    derivative with respect to y and the weights of g is
    :math:`dx = (I + J)^{-1}(dy - \partial_\theta g\, d\theta)`; the steps are not differentiated.

    Args:
        net: g, a pytree of its weights that is called with ``(*batch, D)``.
        y: shape ``(*batch, D)``.
    """
    start = (y, -net(y), jnp.zeros(y.shape[:-1], bool), 0)

    def unfinished(state: tuple[Array, Array, Array, int]) -> Array:
        return (state[3] < MAX_ITERATIONS) & ~jnp.all(state[2])

    def step(state: tuple[Array, Array, Array, int]) -> tuple[Array, Array, Array, int]:
        x, residual, settled, iteration = state
        candidate, its_residual = _better_step(net, y, x, residual)
        rounded = (_norm(its_residual) >= _norm(residual)) & _within(residual, x, y, 16)
        keep = (settled | rounded)[..., None]
        x = jnp.where(keep, x, candidate)
        residual = jnp.where(keep, residual, its_residual)
        lost = ~jnp.isfinite(residual).all(-1)
        settled = keep[..., 0] | lost | _within(residual, x, y, 2)
        return x, residual, settled, iteration + 1

    x, residual, settled, _ = lax.while_loop(unfinished, step, start)
    found = settled & jnp.isfinite(residual).all(-1)
    return jnp.where(found[..., None], x, jnp.nan)


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
    """u with (I + J_g(x)) u = ``right``, of shape ``(*batch, D)``."""
    if x.shape[-1] <= DENSE_UP_TO:
        return _dense_solve(linearized(net, x)[1], right)
    jvp = jax.linearize(net, x)[1]
    return lax.custom_linear_solve(
        lambda u: u + jvp(u), right, _neumann_solve, transpose_solve=_neumann_solve
    )


def _neumann_solve(matvec: Callable[[Array], Array], right: Array) -> Array:
    """u with ``matvec(u) == right``, by u <- u + (right - matvec(u)).

    It stops where the residual is what rounding leaves of products of the size of u.
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
    """The next point, Newton's or Banach's, that has the smaller residual, and that residual."""
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


def _within(residual: Array, x: Array, y: Array, units: int) -> Array:
    """Whether the residual of a sample is within some units of rounding, shape ``y.shape[:-1]``.

    Units of y or 1, or of x where that is larger, though no larger than a contraction's can be.
    """
    scale = jnp.abs(y).max(-1).clip(1)
    largest = jnp.maximum(scale, jnp.minimum(jnp.abs(x).max(-1), 100 * scale))
    return jnp.abs(residual).max(-1) <= units * jnp.finfo(y.dtype).eps * largest
