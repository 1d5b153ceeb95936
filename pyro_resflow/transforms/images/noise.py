"""Entrywise noise and constraints that allow empty batches.

torch's ``Independent`` and ``constraints.independent`` reshape events in a way that fails for
batches of size 0.
"""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from ..core.evaluation import sum_rightmost


class EntrywiseNoise(dist.Independent):
    """Independent entries of one event, in batches of any size, including 0.

    Args:
        base_distribution: the distribution of the entries.
        reinterpreted_batch_ndims: the number of its batch dimensions that form the event.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, shape ``(*batch,)``."""
        return sum_rightmost(self.base_dist.log_prob(value), self.reinterpreted_batch_ndims)


class Entrywise(constraints.independent):
    """A constraint on every entry of an event.

    Args:
        base_constraint: the constraint on one entry.
        reinterpreted_batch_ndims: the number of event dimensions.
    """

    def check(self, value: Tensor) -> Tensor:
        """Whether each event satisfies the constraint, shape ``(*batch,)``."""
        result: Tensor = self.base_constraint.check(value)
        for _ in range(self.reinterpreted_batch_ndims):
            result = result.all(-1)
        return result

    def __repr__(self) -> str:
        """The full name: torch drops the first letter, which is an underscore in its classes."""
        inside = f"{self.base_constraint!r}, {self.reinterpreted_batch_ndims}"
        return f"{type(self).__name__}({inside})"


def entrywise(constraint: constraints.Constraint) -> constraints.Constraint:
    """The same constraint, for batches of any size."""
    if not isinstance(constraint, constraints.independent):
        return constraint
    return Entrywise(constraint.base_constraint, constraint.reinterpreted_batch_ndims)
