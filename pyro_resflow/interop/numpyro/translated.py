"""Base classes of the translated NumPyro transforms, with equality, a hash and inverses."""

from __future__ import annotations

import weakref
from typing import Any, TypeVar, cast

from ...extras import extra

with extra("numpyro"):
    import jax.numpy as jnp
    from jax import Array
    from jax.tree_util import tree_leaves, tree_structure
    from numpyro.distributions.transforms import (
        ComposeTransform,
        IndependentTransform,
        LowerCholeskyAffine,
        PermuteTransform,
        Transform,
        _InverseTransform,
    )

Flattened = tuple[tuple[Any, ...], tuple[tuple[str, ...], dict[str, Any]]]
"""The result of ``tree_flatten``: the children, and their names with the static attributes."""


class Comparable:
    """Equality and hash of a pytree by the identity of its arrays.

    Two objects are equal if their arrays are the same objects, so that a transform can be a
    dictionary key or a static argument of ``jax.jit``. :meth:`eq` can also compare values.
    """

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether the other has the same structure and equal arrays; identical if ``static``."""
        if type(other) is not type(self):
            return False
        leaves, other_leaves = tree_leaves(self), tree_leaves(other)
        if cast(Any, tree_structure(self)) != tree_structure(other):
            return False
        pairs = list(zip(leaves, other_leaves, strict=True))
        if static:
            return all(a is b for a, b in pairs)
        if any(jnp.shape(a) != jnp.shape(b) for a, b in pairs):
            return False
        return jnp.stack([jnp.array_equal(a, b) for a, b in pairs] or [jnp.array(True)]).all()

    def __eq__(self, other: object) -> bool:
        return bool(self.eq(other, static=True))

    def __hash__(self) -> int:
        return hash((type(self), *map(id, tree_leaves(self))))


Kind = TypeVar("Kind", bound=type)


def comparable(kind: Kind) -> Kind:
    """Give a named tuple the equality and the hash of :class:`Comparable`; a class decorator."""
    for name in ("eq", "__eq__", "__hash__"):
        setattr(kind, name, getattr(Comparable, name))
    return kind


class Translated(Comparable, Transform):
    """A NumPyro transform that is hashable, as is its inverse."""

    @property
    def inv(self) -> Transform:
        """The inverse; ``t.inv.inv is t``."""
        remembered = cast(Any, self)._inv
        known = remembered() if remembered is not None else None
        if known is None:
            known = InverseTransform(self)
            self._inv = weakref.ref(known)
        return known

    def tree_flatten(self) -> Flattened:
        raise NotImplementedError


class InverseTransform(Comparable, _InverseTransform):
    """The inverse of a translated transform."""


class OnePassTransform(Translated):
    """A transform whose value and log-determinant come from one pass.

    Subclasses implement :meth:`forward` and :meth:`backward`. Both return the result and
    log|det(dy/dx)|.
    """

    def forward(self, x: Array) -> tuple[Array, Array]:
        """y and log|det(dy/dx)|."""
        raise NotImplementedError

    def backward(self, y: Array) -> tuple[Array, Array]:
        """x and log|det(dy/dx)| at x."""
        raise NotImplementedError

    def __call__(self, x: Array) -> Array:
        return self.forward(x)[0]

    def _inverse(self, y: Array) -> Array:
        return self.backward(y)[0]

    def call_with_intermediates(self, x: Array) -> tuple[Array, Array]:
        """y, and log|det(dy/dx)| from the same pass."""
        return self.forward(x)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """log|det(dy/dx)| at x."""
        return intermediates if intermediates is not None else self.forward(x)[1]


class Composition(Translated, ComposeTransform):
    """NumPyro's ``ComposeTransform``, hashable and evaluated in one pass."""

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """log|det(dy/dx)| at x."""
        if intermediates is None:
            intermediates = self.call_with_intermediates(x)[1]
        return ComposeTransform.log_abs_det_jacobian(self, x, y, intermediates)

    def tree_flatten(self) -> Flattened:
        return (self.parts,), (("parts",), {})


class Independent(Translated, IndependentTransform):
    """NumPyro's ``IndependentTransform``, hashable and with a static number of dimensions.

    Up to NumPyro 0.19 this number is a leaf of NumPyro's pytree, which ``jax.jit`` replaces by a
    traced value.
    """

    def tree_flatten(self) -> Flattened:
        static = {"reinterpreted_batch_ndims": self.reinterpreted_batch_ndims}
        return (self.base_transform,), (("base_transform",), static)


class Permutation(Translated, PermuteTransform):
    """NumPyro's ``PermuteTransform``, hashable."""

    def tree_flatten(self) -> Flattened:
        return (self.permutation,), (("permutation",), {})


class Triangular(Translated, LowerCholeskyAffine):
    """NumPyro's ``LowerCholeskyAffine``, hashable."""

    def tree_flatten(self) -> Flattened:
        return (self.loc, self.scale_tril), (("loc", "scale_tril"), {})


def forward(transform: Transform, x: Array) -> tuple[Array, Array]:
    """y and log|det(dy/dx)| of any NumPyro transform, in one pass if it supports that."""
    y, intermediates = transform.call_with_intermediates(x)
    return y, transform.log_abs_det_jacobian(x, y, intermediates)


def backward(transform: Transform, y: Array) -> tuple[Array, Array]:
    """x and log|det(dy/dx)| at x, of any NumPyro transform."""
    if isinstance(transform, OnePassTransform):
        return transform.backward(y)
    x = transform._inverse(y)
    return x, transform.log_abs_det_jacobian(x, y)
