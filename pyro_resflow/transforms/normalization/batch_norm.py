"""Batch normalisation as a bijection, by running averages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from ...nn.initialization import DataInitialized, Moments, is_initializing
from ..core.base import OnePassTransform
from ..core.checks import check_event_shape
from ..core.determinism import FollowsBatches


class BatchNorm(DataInitialized, FollowsBatches, OnePassTransform):
    r"""Normalisation of each feature by running averages, :math:`y = (x - m)/\sqrt{v + \epsilon}`.

    In training mode a batch that passes forward is first taken into the averages m and v of the
    batches' means and variances: :math:`m \leftarrow m + w\,(\hat m - m)`, with the momentum for
    w, or one over the number of batches while that is larger. Gradients flow through the present
    batch's part. The averages move little from one batch to the next, even from small ones, and so
    does the density. A batch that passes again at once is not taken in again.

    In evaluation mode m and v stay as they are. The very first batch has to be one of data, as for
    an :class:`ActNorm`: see :func:`initialize`. Until then m is 0 and v is 1. Backwards,
    :math:`x = m + \sqrt{v + \epsilon}\,y` undoes what the last batch met. Over several processes,
    a batch is all of theirs.

    Args:
        num_features: entries of a vector, or channels of an image.
        event_dim: 1 for vectors ``(*, D)``, 3 for images ``(*, C, H, W)``.
        momentum: least weight of the present batch, in (0, 1].
        epsilon: what is added to the variance.
        cache_size: 0 or 1.

    Raises:
        ValueError: for another ``event_dim`` or momentum; and when called, for a batch to take in
            that has only one value of each feature, or a first one that may not initialise.

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
        mean, variance = self._moments(x)
        log_scale = -0.5 * (variance + self.epsilon).log()
        y = (x - self._spread(mean)) * self._spread(log_scale.exp())
        return y, self._ladj(x, log_scale)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self._check("y", y)
        log_scale = -0.5 * (self.variance + self.epsilon).log()
        x = y * self._spread((-log_scale).exp()) + self._spread(self.mean)
        return x, self._ladj(y, log_scale)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance to normalise a batch by, after it has been taken in."""
        samples = x.shape[: x.dim() - self._event_dim].numel()
        if self._awaits_batch(x, samples):
            self._initialize(self._features(x).transpose(0, 1), self._begin)
            if not is_initializing():
                self.num_batches.zero_()  # a batch that is scored is itself taken in, below
        if not (self.training and self._seen_initialized) or is_initializing():
            return self.mean, self.variance
        batch = self._batch_moments(x)
        weight = self._take_in(batch.detach())
        # the averages' values, and the gradient of the batch's part in them
        change = weight * (batch - batch.detach())
        return self.mean + change[0], self.variance + change[1]

    def _begin(self, data: Moments) -> None:
        """Take the moments of a first batch for the averages."""
        self.mean.copy_(data.mean)
        self.variance.copy_(data.variance)
        self.num_batches.fill_(1)

    @torch.no_grad()
    def _take_in(self, batch: Tensor) -> Tensor:
        """Move the averages towards a batch's moments; returns the batch's weight in them."""
        taken = (batch != self.last_moments).any() & batch.isfinite().all()
        self.num_batches += taken
        weight = self.num_batches.reciprocal().clamp_min(self.momentum)
        for average, moment in zip((self.mean, self.variance), batch, strict=True):
            average.copy_(torch.where(taken, average + weight * (moment - average), average))
        self.last_moments.copy_(batch)
        return weight

    def _batch_moments(self, x: Tensor) -> Tensor:
        """Mean and variance of each feature, shape ``(2, num_features)``."""
        features = self._features(x)
        if features.shape[1] < 2:
            raise ValueError(
                f"x: a BatchNorm in training mode needs more than one value of each feature, got "
                f"shape {tuple(x.shape)}; pass a batch, or call eval()."
            )
        mean = _over_processes(features.mean(1))
        return torch.stack([mean, _over_processes((features - mean[:, None]).square().mean(1))])

    def _features(self, x: Tensor) -> Tensor:
        """The values of each feature, shape ``(num_features, N)``."""
        features = x.movedim(x.dim() - self._event_dim, 0).reshape(self.num_features, -1)
        return features.to(self.mean.dtype)

    def _ladj(self, x: Tensor, log_scale: Tensor) -> Tensor:
        pixels = x.shape[x.dim() - self._event_dim + 1 :].numel()
        return (log_scale.sum() * pixels).expand(x.shape[: x.dim() - self._event_dim])

    def _spread(self, features: Tensor) -> Tensor:
        return features.reshape(-1, *[1] * (self._event_dim - 1))

    def _check(self, name: str, x: Tensor) -> None:
        inner = x.shape[max(x.dim() - self._event_dim + 1, 0) :]
        check_event_shape(name, x, (self.num_features, *inner))


def _over_processes(moment: Tensor) -> Tensor:
    """The average of a moment over the processes that train together; differentiable."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return moment
    from torch.distributed.nn import all_reduce  # not there where torch is built without

    return all_reduce(moment) / torch.distributed.get_world_size()
