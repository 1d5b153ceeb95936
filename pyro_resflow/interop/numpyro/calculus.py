r"""Jacobians, log-determinants, and the inverse of x + g(x), in JAX, for moderate vectors."""

from __future__ import annotations

from ...extras import extra
from .layers import Layer

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array, lax

MAX_ITERATIONS = 1000
"""Steps after which an inverse counts as not found."""


def linearized(net: Layer, x: Array) -> tuple[Array, Array]:
    """g(x) and the matrices I + J_g(x), of shape ``(*batch, D, D)``, in one pass.

    Args:
        net: g, which takes each sample for itself.
        x: shape ``(*batch, D)``.
    """
    g, jvp = jax.linearize(net, x)
    units = jnp.eye(x.shape[-1], dtype=x.dtype)
    columns = jax.vmap(lambda unit: jvp(jnp.broadcast_to(unit, x.shape)))(units)
    return g, units + jnp.moveaxis(columns, 0, -1)


def call_and_ladj(net: Layer, x: Array) -> tuple[Array, Array]:
    """x + g(x) and log|det(I + J_g(x))|, the latter of shape ``x.shape[:-1]``."""
    g, matrix = linearized(net, x)
    return x + g, jnp.linalg.slogdet(matrix)[1]


def cayley_ladj(net: Layer, w: Array) -> Array:
    """log|det((I - J_g(w)) (I + J_g(w))^-1)|, of shape ``w.shape[:-1]``."""
    plus = linearized(net, w)[1]
    minus = 2 * jnp.eye(w.shape[-1], dtype=plus.dtype) - plus
    return jnp.linalg.slogdet(minus)[1] - jnp.linalg.slogdet(plus)[1]


@jax.custom_jvp
def invert(net: Layer, y: Array) -> Array:
    r"""x with x + g(x) = y; nan for a sample where there is no such x to be found.

    Each step goes where the residual is smaller: to Newton's point, or to Banach's, which for a
    contraction of the Euclidean norm has a smaller one than the last in any case. A sample has
    arrived when its residual is within twice the rounding of y, or within sixteen times and falls
    no more. With respect to y and the weights of g,
    :math:`dx = (I + J)^{-1}(dy - \partial_\theta g\, d\theta)`: none of the steps is
    differentiated.

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
    return x, _solve(linearized(net, x)[1], y_dot - g_dot)


def _better_step(net: Layer, y: Array, x: Array, residual: Array) -> tuple[Array, Array]:
    """The next point, Newton's or Banach's, that has the smaller residual, and that residual."""
    banach = x + residual
    newton = x + _solve(linearized(net, x)[1], residual)
    after_banach = y - banach - net(banach)
    after_newton = y - newton - net(newton)
    better = (_norm(after_newton) < _norm(after_banach))[..., None]
    return jnp.where(better, newton, banach), jnp.where(better, after_newton, after_banach)


def _solve(matrix: Array, right: Array) -> Array:
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
