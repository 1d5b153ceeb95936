"""The noise that flows of images start from, and what holds of each entry of an event.

torch's own sum of an event, and its check of one, reshape in a way that takes no empty batch.
"""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from ..core.evaluation import sum_rightmost


class EntrywiseNoise(dist.Independent):
    """Independent entries of one event, in batches of any size, none included.

    Args:
        base_distribution: the distribution of the entries.
        reinterpreted_batch_ndims: how many of its batch dimensions are the event.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, shape ``(*batch,)``."""
        return sum_rightmost(self.base_dist.log_prob(value), self.reinterpreted_batch_ndims)


class Entrywise(constraints.independent):
    """A constraint of every entry of an event.

    Args:
        base_constraint: that of an entry.
        reinterpreted_batch_ndims: dimensions of the event.
    """

    def check(self, value: Tensor) -> Tensor:
        """Whether each event of a batch of any size satisfies it, shape ``(*batch,)``."""
        result: Tensor = self.base_constraint.check(value)
        for _ in range(self.reinterpreted_batch_ndims):
            result = result.all(-1)
        return result

    def __repr__(self) -> str:
        """The name whole: torch takes its first letter for the underscore of a private class."""
        inside = f"{self.base_constraint!r}, {self.reinterpreted_batch_ndims}"
        return f"{type(self).__name__}({inside})"


def entrywise(constraint: constraints.Constraint) -> constraints.Constraint:
    """The same constraint, for batches of any size."""
    if not isinstance(constraint, constraints.independent):
        return constraint
    return Entrywise(constraint.base_constraint, constraint.reinterpreted_batch_ndims)
