"""Activation normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ...nn.initialization import DataInitialized, Moments
from ..core.checks import check_event_shape
from ..core.one_pass_transform import OnePassTransform


class ActNorm(DataInitialized, OnePassTransform):
    r"""Learned scale and shift per feature, :math:`y = e^s x + b`, set by the first batch of data.

    The first batch comes out with mean 0 and standard deviation 1 in every feature, in either
    direction; :func:`initialize` says which batches count as data. Until then the transform is
    the identity. Whether it is initialised is a buffer and is saved with the state.

    Args:
        num_features: the number of entries of a vector or of channels of an image; or the shape
            ``(C, H, W)``, for a separate scale and shift at every pixel.
        event_dim: 1 for vectors ``(*, D)``, 3 for images ``(*, C, H, W)``.
        initialized: if True, start from the identity instead of waiting for data. This suits
            flows whose fast direction starts from standard normal noise.
        cache_size: 0 or 1.

    Raises:
        ValueError: when a batch is scored before initialisation and may not itself initialise
            the transform, see :func:`initialize`.

    Reference:
        Kingma and Dhariwal, Glow, 2018, section 3.1; per pixel: Ho et al., Flow++, 2019.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import ActNorm, initialize
        >>> norm, x = ActNorm(3), 5 + 2 * torch.randn(100, 3)
        >>> initialize(norm.inv, x)
        >>> torch.allclose(norm(x).std(0), torch.ones(3), atol=1e-5)
        True
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        event_dim: int = 1,
        initialized: bool = False,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        if event_dim not in (1, 3):
            raise ValueError(f"event_dim: expected 1 (vectors) or 3 (images), got {event_dim}.")
        shape = (num_features,) if isinstance(num_features, int) else tuple(num_features)
        if len(shape) not in (1, event_dim):
            raise ValueError(
                f"num_features: expected a number or {event_dim} sizes, got {tuple(shape)}."
            )
        self.feature_shape = torch.Size(shape)
        self._event_dim = event_dim
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.shift = nn.Parameter(torch.zeros(shape))
        self._start(initialized)

    def await_batch(self) -> None:
        super().await_batch()
        with torch.no_grad():
            self.log_scale.zero_()
            self.shift.zero_()

    @property
    def num_features(self) -> int:
        """The number of scales, equal to the number of shifts."""
        return self.feature_shape.numel()

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self._event_dim)

    codomain = domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self._call(x)
        return y, self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self._inverse(y)
        return x, self._ladj(x)

    def _call(self, x: Tensor) -> Tensor:
        self._check("x", x)
        if self._awaits_batch(x, self._batch_size(x)):
            self._initialize(self._samples(x), self._standardize_inputs)
        scale = self._broadcastable(self.log_scale.exp())
        return torch.addcmul(self._broadcastable(self.shift), x, scale)

    def _inverse(self, y: Tensor) -> Tensor:
        self._check("y", y)
        if self._awaits_batch(y, self._batch_size(y)):
            self._initialize(self._samples(y), self._standardize_outputs)
        return (y - self._broadcastable(self.shift)) * self._broadcastable((-self.log_scale).exp())

    def _ladj(self, x: Tensor) -> Tensor:
        total = self.log_scale.sum()
        if len(self.feature_shape) < self._event_dim:
            total = total * x.shape[x.dim() - self._event_dim + len(self.feature_shape) :].numel()
        return total.expand(x.shape[: x.dim() - self._event_dim])

    def _check(self, name: str, x: Tensor) -> None:
        shared = self._event_dim - len(self.feature_shape)
        check_event_shape(name, x, (*self.feature_shape, *x.shape[x.dim() - shared :]))

    def _broadcastable(self, features: Tensor) -> Tensor:
        """Reshape one value per feature so that it broadcasts over the events' other entries."""
        if len(self.feature_shape) == self._event_dim:
            return features
        return features.reshape(
            *self.feature_shape, *[1] * (self._event_dim - len(self.feature_shape))
        )

    def _samples(self, x: Tensor) -> Tensor:
        """The batch reshaped to ``(N, features, *)``."""
        samples = x.reshape(-1, *x.shape[x.dim() - self._event_dim :])
        return samples.flatten(1, len(self.feature_shape)).to(self.shift.dtype)

    def _batch_size(self, x: Tensor) -> int:
        return x.shape[: x.dim() - self._event_dim].numel()

    def _standardize_inputs(self, data: Moments) -> None:
        self._set(-data.std.log(), -data.mean / data.std)

    def _standardize_outputs(self, data: Moments) -> None:
        self._set(data.std.log(), data.mean)

    def _set(self, log_scale: Tensor, shift: Tensor) -> None:
        self.log_scale.copy_(log_scale.reshape(self.feature_shape))
        self.shift.copy_(shift.reshape(self.feature_shape))
