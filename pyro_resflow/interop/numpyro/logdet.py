r"""Log-determinants of contractions in JAX: exact, or estimated in a Krylov space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ...extras import extra
from .calculus import linearized
from .layers import Layer

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array

EXACT_UP_TO = 1024
"""The largest D for which :class:`Exact` builds a Jacobian, from D products, with D^2 entries."""

QUADRATURE_NODES = 32
"""Number of quadrature nodes of the logarithm's integral."""

CLUSTERING = 4
"""Power of the substitution that clusters nodes near t = 1, the pole of an eigenvalue near -1.

With 32 nodes the error is 1e-13 for an eigenvalue of -.99, 1e-9 for -.999, 1e-6 for -.9999."""

BREAKDOWN = 100
"""If the part of a product outside the basis is below this many units of rounding, it is noise."""


class LogDet(Protocol):
    """An estimator of the log-determinants of x + g(x) and of the Cayley transform of g."""

    def residual(self, net: Layer, x: Array) -> tuple[Array, Array]:
        """g(x) and log|det(I + J_g(x))|, the latter of shape ``x.shape[:-1]``."""

    def cayley(self, net: Layer, x: Array) -> Array:
        """log|det((I - J_g(x)) (I + J_g(x))^-1)|, of shape ``x.shape[:-1]``."""


class Exact(NamedTuple):
    """The exact log-determinant from the full Jacobian, for at most ``EXACT_UP_TO`` entries."""

    def residual(self, net: Layer, x: Array) -> tuple[Array, Array]:
        """g(x) and log|det(I + J_g(x))|, the latter of shape ``x.shape[:-1]``."""
        _check_size(x)
        g, matrix = linearized(net, x)
        return g, jnp.linalg.slogdet(matrix)[1]

    def cayley(self, net: Layer, x: Array) -> Array:
        """log|det((I - J_g(x)) (I + J_g(x))^-1)|, of shape ``x.shape[:-1]``."""
        _check_size(x)
        plus = linearized(net, x)[1]
        minus = 2 * jnp.eye(x.shape[-1], dtype=plus.dtype) - plus
        # one call: two concurrent calls can deadlock, see _first_column_of_inverse
        both = jnp.linalg.slogdet(jnp.stack([minus, plus]))[1]
        return both[0] - both[1]


@dataclass(frozen=True)
class Krylov:
    r"""Estimate the log-determinant from Jacobian-vector products with random probes.

    For a probe e of independent random signs, n products give an orthonormal basis V of
    :math:`e, Je, \ldots, J^{n-1}e`, and
    :math:`e^T \log(I+J)\,e \approx |e|^2\, e_1^T \log(I + V^T J V)\,e_1`. The expectation over
    probes is the log-determinant plus a truncation error, which is about 1e-5 nats for a trained
    block at n = 8 and increases as the block's Lipschitz constant approaches 1.

    The key fixes the probes, so that the log-density is a deterministic, differentiable function,
    as NUTS needs. Its error for one key does not average out: compare several keys to see its
    size.

    Args:
        key: a key of ``jax.random``.
        products: n, the number of Jacobian-vector products for each probe.
        probes: number of probes, over which the estimates are averaged.

    Raises:
        ValueError: for fewer than one product or probe.

    Example:
        See :func:`with_logdet`.
    """

    key: Array
    products: int = 8
    probes: int = 1

    def __post_init__(self) -> None:
        for name in ("products", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")

    def residual(self, net: Layer, x: Array) -> tuple[Array, Array]:
        """g(x) and log|det(I + J_g(x))|, the latter of shape ``x.shape[:-1]``."""
        g, jvp = jax.linearize(net, x)
        return g, self._estimated_trace(jvp, x, _first_entry_of_log)

    def cayley(self, net: Layer, x: Array) -> Array:
        """log|det((I - J_g(x)) (I + J_g(x))^-1)|, of shape ``x.shape[:-1]``."""
        jvp = jax.linearize(net, x)[1]
        return self._estimated_trace(
            jvp, x, lambda h: _first_entry_of_log(-h) - _first_entry_of_log(h)
        )

    def _estimated_trace(
        self, jvp: Callable[[Array], Array], x: Array, function: Callable[[Array], Array]
    ) -> Array:
        """The estimated trace of a function of the Jacobian, shape ``x.shape[:-1]``."""
        products = min(self.products, x.shape[-1])
        signs = jax.random.rademacher(self.key, (self.probes, *x.shape[-1:]), x.dtype)

        def estimate(probe: Array) -> Array:
            start = jnp.broadcast_to(probe, x.shape)
            return x.shape[-1] * function(_hessenberg(jvp, start, products))

        return jax.vmap(estimate)(signs).mean(0)


jax.tree_util.register_dataclass(Krylov, data_fields=["key"], meta_fields=["products", "probes"])


def _hessenberg(jvp: Callable[[Array], Array], start: Array, products: int) -> Array:
    """V^T J V for the Krylov space of ``start``, shape ``(*batch, products, products)``.

    If the space has a smaller dimension, zeros fill the rest of the basis and of the matrix.
    """
    basis = [start / jnp.linalg.norm(start, axis=-1, keepdims=True)]
    columns = []
    for step in range(products):
        product = jvp(basis[-1])
        known = jnp.stack(basis, axis=-2)
        rest, coefficients = product, jnp.zeros(known.shape[:-1], product.dtype)
        for _ in range(2):  # a second pass removes the components that rounding left in the rest
            part = jnp.einsum("...kd,...d->...k", known, rest)
            rest = rest - jnp.einsum("...k,...kd->...d", part, known)
            coefficients = coefficients + part
        length, following = _normalized(rest, product)
        column = jnp.concatenate([coefficients, length[..., None]], axis=-1)
        padding = [(0, 0)] * (column.ndim - 1) + [(0, products - 1 - step)]
        columns.append(jnp.pad(column, padding)[..., :products])
        basis.append(following)
    return jnp.stack(columns, axis=-1)


def _normalized(rest: Array, product: Array) -> tuple[Array, Array]:
    """Length and direction of the rest; zero, with zero gradients, where it is only rounding."""
    squared = (rest**2).sum(-1)
    rounding = BREAKDOWN * jnp.finfo(rest.dtype).eps
    alive = squared > rounding**2 * jnp.maximum((product**2).sum(-1), rounding**2)
    length = jnp.where(alive, jnp.sqrt(jnp.where(alive, squared, 1)), 0)
    return length, jnp.where(alive[..., None], rest / jnp.where(alive, length, 1)[..., None], 0)


def _first_entry_of_log(matrix: Array) -> Array:
    r"""The first entry of log(I + H), of shape ``matrix.shape[:-2]``.

    It is the integral :math:`\int_0^1 H (I + tH)^{-1} dt` with :math:`1 - t = (1 - s)^4`, by
    Gauss-Legendre quadrature in s.
    """
    nodes, masses = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    rest = (1 - nodes) / 2
    t = jnp.asarray(1 - rest**CLUSTERING, matrix.dtype)
    weights = jnp.asarray(masses / 2 * CLUSTERING * rest ** (CLUSTERING - 1), matrix.dtype)
    unit = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    shifted = unit + t.reshape(-1, *[1] * matrix.ndim) * matrix
    solved = _first_column_of_inverse(shifted)
    return jnp.einsum("q,q...k,...k->...", weights, solved, matrix[..., 0, :])


def _first_column_of_inverse(hessenberg: Array) -> Array:
    """A^-1 e_1 for Hessenberg matrices A, by Givens rotations and back substitution.

    It does not use LAPACK: with jaxlib 0.10.2 two concurrent batched solves on a CPU with two
    cores deadlock, because each splits its batch over the threads that both of them occupy.
    """
    size = hessenberg.shape[-1]
    rows = [hessenberg[..., k, :] for k in range(size)]
    right = [jnp.zeros(hessenberg.shape[:-2], hessenberg.dtype) for _ in range(size)]
    right[0] = jnp.ones_like(right[0])
    for k in range(size - 1):
        above, below = rows[k][..., k], rows[k + 1][..., k]
        length = jnp.sqrt(above**2 + below**2)
        cos, sin = above / length, below / length
        right[k], right[k + 1] = cos * right[k], -sin * right[k]
        cos, sin = cos[..., None], sin[..., None]
        rows[k], rows[k + 1] = (
            cos * rows[k] + sin * rows[k + 1],
            cos * rows[k + 1] - sin * rows[k],
        )
    triangular, rest = jnp.stack(rows, axis=-2), jnp.stack(right, axis=-1)
    solution = []
    for k in reversed(range(size)):
        solution.append(rest[..., k] / triangular[..., k, k])
        rest = rest - triangular[..., :, k] * solution[-1][..., None]
    return jnp.stack(solution[::-1], axis=-1)


def _check_size(x: Array) -> None:
    if x.shape[-1] > EXACT_UP_TO:
        raise ValueError(
            f"x: expected at most {EXACT_UP_TO} entries for an exact log-determinant, which takes "
            f"the full Jacobian of each sample, got {x.shape[-1]}. Use an estimate: "
            "pyro_resflow.interop.numpyro.with_logdet(flow, Krylov(key))."
        )
