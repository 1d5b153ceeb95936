"""Batch normalisation by running averages, which makes it a bijection."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from ...nn.initialization import DataInitialized, Moments, is_initializing, writing_to
from ..core.checks import check_event_shape
from ..core.determinism import FollowsBatches
from ..core.one_pass_transform import OnePassTransform


class BatchNorm(DataInitialized, FollowsBatches, OnePassTransform):
    r"""Normalise each feature by running averages, :math:`y = (x - m)/\sqrt{v + \epsilon}`.

    In training mode the forward direction first updates the running averages m and v of the
    batches' means and variances, :math:`m \leftarrow m + w\,(\hat m - m)`. The weight w is the
    momentum, or one over the number of batches while that is larger. Gradients flow through the
    current batch's share of the averages. The averages, and with them the density, change little
    from one batch to the next, even if batches are small. Passing the same batch twice in a row
    updates the averages once.

    In evaluation mode m and v are constant. As for an :class:`ActNorm`, the first batch has to be
    data, see :func:`initialize`; until then m is 0 and v is 1. The inverse
    :math:`x = m + \sqrt{v + \epsilon}\,y` uses the averages as the last forward batch left them.
    With several processes, moments are averaged over all of them.

    Args:
        num_features: the number of entries of a vector or of channels of an image.
        event_dim: 1 for vectors ``(*, D)``, 3 for images ``(*, C, H, W)``.
        momentum: the least weight of the current batch, in (0, 1].
        epsilon: :math:`\epsilon`, added to the variance.
        cache_size: 0 or 1.

    Raises:
        ValueError: for another ``event_dim`` or momentum. When called: if a batch that would
            update the averages has only one value of each feature, or if a first batch may not
            initialise the transform.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.7 and
        appendix E.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import BatchNorm, initialize
        >>> norm = BatchNorm(3)
        >>> x = 5 + 2 * torch.randn(100, 3)
        >>> initialize(norm.inv, x)
        >>> bool(norm(x).mean().abs() < 1e-5)
        True
    """

    mean: Tensor
    variance: Tensor
    num_batches: Tensor
    last_moments: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        event_dim: int = 1,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        if event_dim not in (1, 3):
            raise ValueError(f"event_dim: expected 1 (vectors) or 3 (images), got {event_dim}.")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum: expected a number in (0, 1], got {momentum}.")
        self.num_features = num_features
        self.momentum = momentum
        self.epsilon = epsilon
        self._event_dim = event_dim
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(num_features))
        self.register_buffer("num_batches", torch.zeros(()))
        last = torch.full((2, num_features), torch.nan)
        self.register_buffer("last_moments", last, persistent=False)
        self._start(False)

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self._event_dim)

    codomain = domain

    def await_batch(self) -> None:
        super().await_batch()
        self.mean.zero_()
        self.variance.fill_(1)
        self.num_batches.zero_()
        self.last_moments.fill_(torch.nan)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        mean, variance = self._updated_moments(x)
        log_scale = -0.5 * (variance + self.epsilon).log()
        y = (x - self._broadcastable(mean)) * self._broadcastable(log_scale.exp())
        return y, self._ladj(x, log_scale)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self._check("y", y)
        log_scale = -0.5 * (self.variance + self.epsilon).log()
        x = y * self._broadcastable((-log_scale).exp()) + self._broadcastable(self.mean)
        return x, self._ladj(y, log_scale)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def _updated_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Update the averages by a batch if they are to follow it; return mean and variance."""
        samples = x.shape[: x.dim() - self._event_dim].numel()
        if self._awaits_batch(x, samples):
            self._initialize(self._features(x).transpose(0, 1), self._start_averages)
            if not is_initializing():
                with writing_to(self.num_batches):
                    self.num_batches.zero_()  # the update below counts a scored batch itself
        if not (self.training and self._seen_initialized) or is_initializing():
            return self.mean, self.variance
        batch = self._batch_moments(x)
        with writing_to(self.mean):
            weight = self._update_averages(batch.detach())
        # zero in value; it carries the gradient of the batch's share of the averages
        change = weight * (batch - batch.detach())
        return self.mean + change[0], self.variance + change[1]

    def _start_averages(self, data: Moments) -> None:
        """Set the averages to the moments of the first batch."""
        self.mean.copy_(data.mean)
        self.variance.copy_(data.variance)
        self.num_batches.fill_(1)

    @torch.no_grad()
    def _update_averages(self, batch: Tensor) -> Tensor:
        """Move the averages towards a batch's moments; return the batch's weight in them."""
        is_new = (batch != self.last_moments).any() & batch.isfinite().all()
        self.num_batches += is_new
        weight = self.num_batches.reciprocal().clamp_min(self.momentum)
        for average, moment in zip((self.mean, self.variance), batch, strict=True):
            average.copy_(torch.where(is_new, average + weight * (moment - average), average))
        self.last_moments.copy_(batch)
        return weight

    def _batch_moments(self, x: Tensor) -> Tensor:
        """Mean and variance of each feature, shape ``(2, num_features)``."""
        features = self._features(x)
        if features.shape[1] < 2:
            raise ValueError(
                f"x: expected more than one value of each feature in training mode, got shape "
                f"{tuple(x.shape)}; pass a batch, or call eval()."
            )
        mean = _average_over_processes(features.mean(1))
        return torch.stack(
            [mean, _average_over_processes((features - mean[:, None]).square().mean(1))]
        )

    def _features(self, x: Tensor) -> Tensor:
        """The values of each feature, shape ``(num_features, N)``."""
        features = x.movedim(x.dim() - self._event_dim, 0).reshape(self.num_features, -1)
        return features.to(self.mean.dtype)

    def _ladj(self, x: Tensor, log_scale: Tensor) -> Tensor:
        pixels = x.shape[x.dim() - self._event_dim + 1 :].numel()
        return (log_scale.sum() * pixels).expand(x.shape[: x.dim() - self._event_dim])

    def _broadcastable(self, features: Tensor) -> Tensor:
        """Reshape one value per feature so that it broadcasts over the pixels of an image."""
        return features.reshape(-1, *[1] * (self._event_dim - 1))

    def _check(self, name: str, x: Tensor) -> None:
        inner = x.shape[max(x.dim() - self._event_dim + 1, 0) :]
        check_event_shape(name, x, (self.num_features, *inner))


def _average_over_processes(moment: Tensor) -> Tensor:
    """Average a moment over the processes that train together; differentiable."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return moment
    from torch.distributed.nn import all_reduce  # missing if torch is built without distributed

    return all_reduce(moment) / torch.distributed.get_world_size()
