"""Labels as the context of a NumPyro transform."""

from __future__ import annotations

from typing import NamedTuple

from ...extras import extra
from .transforms import ConditionalTransform
from .translated import comparable

with extra("numpyro"):
    import jax.numpy as jnp
    from jax import Array
    from numpyro.distributions.transforms import Transform


@comparable
class LabelledTransform(NamedTuple):
    """A conditional transform that depends on a label through a vector.

    Attributes:
        embedding: the vector of each label, shape ``(num_classes, embedding_dim)``.
        transform: the transform that depends on the vector.
    """

    embedding: Array
    transform: ConditionalTransform

    def condition(self, context: Array) -> Transform:
        """The transform at integer labels of shape ``(*batch,)``.

        Compiled code cannot raise errors: a label that is not one of 0 .. K - 1 gives nan.

        Raises:
            ValueError: for a context that does not consist of integers.
        """
        labels = jnp.asarray(context)
        classes = len(self.embedding)
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"context: expected integer labels 0 .. {classes - 1}, got {labels.dtype}."
            )
        known = (labels >= 0) & (labels < classes)
        vectors = self.embedding[jnp.clip(labels, 0, classes - 1)]
        return self.transform.condition(jnp.where(known[..., None], vectors, jnp.nan))
