"""The logistic-mixture map of Flow++."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...solvers import BracketedNewton
from .maps import AffineMap, ElementwiseMap


class LogisticMixtureMap(ElementwiseMap):
    r"""The logit of a logistic mixture's distribution function, then a scale and a shift.

    .. math:: y = e^{s}\,\mathrm{logit}\Big(\sum_k \pi_k\,
        \sigma\big((x - \mu_k)\,e^{-t_k}\big)\Big) + b

    with weights :math:`\pi` (a softmax), means :math:`\mu`, log-scales t bounded below, and
    :math:`s = \tanh(h)`. Each entry takes 3 K + 2 parameters: h, b, K weights, K means and K
    log-scales. If all are zero, the map is the identity.

    All sums have positive terms and are computed in logarithms, so that nothing overflows or
    cancels however large x is. A bracketed Newton iteration finds the inverse: the root lies
    between the smallest and the largest of the components' quantiles.

    Args:
        components: K.
        minimum_log_scale: the lower bound of the components' log-scales.
        solver: finds the inverse; default ``BracketedNewton()``. With
            ``BracketedNewton(unsolved="nan")`` the entries that cannot be inverted are nan
            instead of an error.

    Raises:
        ValueError: for fewer than one component.
        ConvergenceError: when inverted, if the solver does not converge, for instance because
            parameters are not finite.

    Reference:
        Ho et al., Flow++, 2019, section 3.2.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import LogisticMixtureMap
        >>> mixture = LogisticMixtureMap(4)
        >>> x, parameters = torch.randn(7, 3), torch.randn(7, mixture.num_parameters, 3)
        >>> y, log_slope = mixture(x, parameters)
        >>> torch.allclose(mixture.inverse(y, parameters)[0], x, atol=1e-5)
        True
    """

    def __init__(
        self,
        components: int = 32,
        *,
        minimum_log_scale: float = -7.0,
        solver: BracketedNewton | None = None,
    ) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components: expected at least one, got {components}.")
        self.components = components
        self.num_parameters = 3 * components + 2
        self.minimum_log_scale = minimum_log_scale
        self.solver = solver if solver is not None else BracketedNewton()
        self.affine = AffineMap()

    @property
    def passes(self) -> tuple[str, str]:
        return "one pass", type(self.solver).__name__

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx, both of the shape of x."""
        affine, mixture = self._split(parameters)
        logit, log_slope = _logit_and_log_slope(x, *mixture)
        y, log_scale = self.affine(logit, affine)
        return y, log_slope + log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dy/dx (of the forward direction) at it, both of the shape of y."""
        affine, mixture = self._split(parameters)
        logit, log_scale = self.affine.inverse(y, affine)

        _, means, log_scales = mixture
        # the scales are kept finite: an infinite one times a logit of 0 is nan
        scales = log_scales.detach().exp().clamp_max(torch.finfo(y.dtype).max)
        lower, upper = (means.detach() + scales * logit.detach().unsqueeze(1)).aminmax(dim=1)
        x = self.solver(_logit_and_slope, logit, lower, upper, mixture)
        return x, _logit_and_log_slope(x, *mixture)[1] + log_scale

    def _split(self, parameters: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The affine map's parameters; the mixture's log-weights, means and log-scales."""
        affine, weights, means, log_scales = parameters.split(
            [2, self.components, self.components, self.components], dim=1
        )
        return affine, (
            weights.log_softmax(1),
            means,
            log_scales.clamp_min(self.minimum_log_scale),
        )


def _logit_and_log_slope(
    x: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The logit of the mixture's distribution function F, and the log of its derivative.

    :math:`\frac{d}{dx}\mathrm{logit} F = \sum_k e^{-t_k}(r_k\,\sigma(-z_k) + q_k\,\sigma(z_k))`,
    where :math:`r_k` and :math:`q_k` are component k's shares of F and of 1 - F.
    """
    z = (x.unsqueeze(1) - means) * (-log_scales).exp()
    log_below, log_above = F.logsigmoid(z), F.logsigmoid(-z)
    below, above = log_weights + log_below, log_weights + log_above
    logit = below.logsumexp(1) - above.logsumexp(1)
    log_slope = torch.logaddexp(
        (below.log_softmax(1) + log_above - log_scales).logsumexp(1),
        (above.log_softmax(1) + log_below - log_scales).logsumexp(1),
    )
    return logit, log_slope


def _logit_and_slope(x: Tensor, *mixture: Tensor) -> tuple[Tensor, Tensor]:
    logit, log_slope = _logit_and_log_slope(x, *mixture)
    return logit, log_slope.exp()
