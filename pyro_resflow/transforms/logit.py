"""The logit transform, from pixels to the real line."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from .core.evaluation import sum_rightmost
from .core.one_pass_transform import OnePassTransform
from .core.ranges import check_interval


class Logit(OnePassTransform):
    r"""Map pixels to the real line, :math:`y = \mathrm{logit}(\alpha + (1 - 2\alpha)\,x)`.

    This is a bijection from the interval :math:`(-\alpha, 1-\alpha)/(1-2\alpha)`, which is
    slightly larger than [0, 1], to the real line.

    Args:
        alpha: :math:`\alpha` in [0, 0.5). A positive margin makes the logits of 0 and 1 finite.
        event_dim: number of event dimensions, over which the log-determinant is summed.
        cache_size: 0 or 1.

    Raises:
        ValueError: for an alpha outside [0, 0.5). If ``pyro.enable_validation`` is on, also for
            pixels outside the interval, for instance 0 .. 255.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 4.1.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import Logit
        >>> Logit(0.05)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-2.9444,  0.0000,  2.9444])
    """

    def __init__(self, alpha: float = 0.05, *, event_dim: int = 0, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha: expected a number in [0, 0.5), got {alpha}.")
        self.alpha = alpha
        self._event_dim = event_dim

    @property
    def margin(self) -> float:
        """The distance by which the domain extends beyond [0, 1] at each end."""
        return self.alpha / (1 - 2 * self.alpha)

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return _independent(constraints.interval(-self.margin, 1 + self.margin), self._event_dim)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return _independent(constraints.real, self._event_dim)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_interval(x, -self.margin, 1 + self.margin)
        y = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        return y, self._ladj(y)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(y), self._ladj(y)

    def _inverse(self, y: Tensor) -> Tensor:
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)

    def _ladj(self, y: Tensor) -> Tensor:
        entries = math.log1p(-2 * self.alpha) + F.softplus(y) + F.softplus(-y)
        return sum_rightmost(entries, self._event_dim)


def _independent(constraint: constraints.Constraint, event_dim: int) -> constraints.Constraint:
    return constraints.independent(constraint, event_dim) if event_dim else constraint
