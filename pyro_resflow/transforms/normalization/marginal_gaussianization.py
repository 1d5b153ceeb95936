"""Marginal Gaussianization: pixels to nearly normal entries, by the histogram of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

from ...nn.initialization import DataInitialized, initialize_by
from ..core.checks import check_event_shape
from ..core.evaluation import sum_rightmost
from ..core.one_pass_transform import OnePassTransform
from ..core.ranges import check_near_unit_interval
from .code_length import code_length

FLOOR = 2**-8
r"""Share of a uniform density in every marginal, which bounds the map's slope from below.

The slope is at least :math:`\sqrt{2\pi}` times this share, so that the inverse multiplies the
rounding error of y by at most 102. It costs at most :math:`-\log_2(1 - 2^{-8})`, 0.006 bits/dim.
"""

OUTER_SHARE = 2**-2
"""Share of the first and of the last bin outside [0, 1], in the uniform density of the floor."""

MARGIN = 0.05
"""Mass of the wide uniform density on either side of [0, 1], like the margin of a logit."""

SHARES = (2**-6, 2**-4, 2**-2, 0.5, 0.75, 1.0)
"""Shares of the wide uniform density among which the data choose.

The smallest costs at most 0.023 bits/dim, and keeps the images of 0 and 1 finite and near.
"""

KEPT_VALUES = 2**18
"""Most pixel values by which a share is chosen."""

LEVELS = range(2, 2**16 + 1)
"""The numbers of bins that float32 can tell apart."""


class Histogram:
    """Counts of the values in each bin of [0, 1], over several batches together.

    It also keeps the first samples, with every value moved to a random place in its bin.

    Args:
        features: number of features, each with its own counts.
        bins: number of bins.
    """

    def __init__(self, features: int, bins: int) -> None:
        self.samples = 0
        self.features = features
        self.bins = bins
        self.counts = torch.zeros(features, bins, dtype=torch.int64)
        self.kept: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0)  # the same map from the same data

    def add(self, samples: Tensor) -> None:
        """Add features of shape ``(N, F, *)``; values outside [0, 1] count in the end bins."""
        rows = samples.transpose(0, 1).flatten(1)
        index = (rows * self.bins).floor().clamp(0, self.bins - 1).long()
        index += self.bins * torch.arange(self.features, device=index.device)[:, None]
        counts = torch.bincount(index.flatten(), minlength=self.features * self.bins)
        self.counts = self.counts + counts.reshape(self.features, self.bins).cpu()
        self.samples += len(samples)
        self._keep(samples)

    def _keep(self, samples: Tensor) -> None:
        """Keep the first samples, as many as there is room for."""
        room = KEPT_VALUES - sum(each.numel() for each in self.kept)
        size = samples[:1].numel()
        few = samples[: max(room // size, 2 - len(self.kept))].cpu()
        if len(few):
            places = torch.rand(few.shape, generator=self._generator, dtype=few.dtype)
            index = (few * self.bins).floor().clamp(0, self.bins - 1)
            self.kept.append((index + places) / self.bins)


class Tables(NamedTuple):
    """The marginal's distribution function at the bins, each of shape ``(F, bins)``.

    Args:
        below: the mass below the lower edge of each bin.
        above: the mass above the upper edge of each bin.
        mass: the mass inside each bin and inside [0, 1].
    """

    below: Tensor
    above: Tensor
    mass: Tensor


class MarginalGaussianization(DataInitialized, OnePassTransform):
    r"""Map each pixel to a nearly normal entry, :math:`y = \Phi^{-1}(F(x))`.

    F is a distribution function of pixels, linear within each of ``bins`` equal bins of [0, 1],
    and :math:`\Phi^{-1}` is the normal quantile function. F is a mixture,

    .. math:: F = (1 - s)\,\text{histogram} + s\,\text{uniform},

    of the histogram of the data, with a count of 1 added to each bin, and of a uniform density
    on a range a little wider than [0, 1]. With s = 1 the map is nearly linear, which suits
    photographs, whose neighbouring pixels are nearly equal. A small s suits images with many
    pixels of few levels. The data choose s, from :data:`SHARES`: it is the one that gives some of
    the images the shortest code under a normal model, of pixels alone and given their neighbours.
    The map is increasing. It needs no number from the user, unlike ``Logit(alpha)``.

    Outside [0, 1] the map continues as a straight line with the slope that it has at 0 and at 1,
    so that the density has Gaussian tails there. Therefore 0 and 1 have finite images, every real
    number has one, and the log-determinant is the derivative of the map everywhere but at the
    edges of the bins.

    Like an ActNorm, the transform is set by the first batch that ``log_prob`` scores in training
    mode, or by :func:`initialize`. One batch makes a poor histogram: call :meth:`fit` with many
    batches first. Until it is set, F is uniform.

    Args:
        bins: number of bins, from 2 to 65,536: the number of grey levels.
        num_features: None for one F for all entries; the number of channels for one F each; or
            the shape ``(C, H, W)`` for one F for every pixel.
        event_dim: 1 for vectors ``(*, D)``, 3 for images ``(*, C, H, W)``.
        learnable: whether F is trained afterwards. Its tensor ``logits`` of shape
            ``(F, bins + 2)`` holds the logs of the masses below 0, in each bin and above 1, up to
            a constant; it is a parameter if it is learnable, else a buffer.
        cache_size: 0 or 1.

    Raises:
        ValueError: for a number of bins out of range, for other features than the event has, and
            when a batch is scored before initialisation and may not itself initialise the
            transform, see :func:`initialize`. If ``pyro.enable_validation`` is on, also for
            pixels far outside [0, 1], for instance 0 .. 255.

    Reference:
        Chen and Gopinath, Gaussianization, 2000; Laparra, Camps-Valls and Malo, Iterative
        Gaussianization, 2011.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import MarginalGaussianization
        >>> levels = torch.randint(0, 8, (100, 1, 8, 8)) ** 2
        >>> images = (levels + torch.rand(levels.shape)) / 64
        >>> gaussianize = MarginalGaussianization(64)
        >>> gaussianize.fit(images)
        >>> y = gaussianize(images)
        >>> bool(y.mean().abs() < 0.1), bool((y.std() - 1).abs() < 0.1)
        (True, True)
    """

    logits: Tensor

    def __init__(
        self,
        bins: int = 256,
        num_features: int | Sequence[int] | None = None,
        *,
        event_dim: int = 3,
        learnable: bool = False,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        if event_dim not in (1, 3):
            raise ValueError(f"event_dim: expected 1 (vectors) or 3 (images), got {event_dim}.")
        if bins not in LEVELS:
            raise ValueError(f"bins: expected 2 to {LEVELS[-1]} grey levels, got {bins}.")
        sizes = num_features if num_features is not None else ()
        self.feature_shape = torch.Size((sizes,) if isinstance(sizes, int) else sizes)
        if len(self.feature_shape) not in (0, 1, event_dim):
            raise ValueError(
                f"num_features: expected None, a number or {event_dim} sizes, got "
                f"{tuple(self.feature_shape)}."
            )
        self.bins = bins
        self._event_dim = event_dim
        logits = _log(_wide_uniform(self.feature_shape.numel(), bins)).to(
            torch.get_default_dtype()
        )
        if learnable:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)
        self._start(False)

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self._event_dim)

    codomain = domain

    def fit(self, images: Tensor | Sequence[Tensor]) -> None:
        """Set the marginal from data, in one batch or in several, whatever it was before.

        Args:
            images: values on [0, 1] of shape ``(N, *event)``, or a sequence of such batches. Grey
                levels k are at ``(k + 0.5) / bins``.

        Raises:
            ValueError: for fewer than two samples, or values that are not finite.
        """
        self.await_batch()
        batches = [images] if isinstance(images, Tensor) else images
        initialize_by(lambda batch: self._call(batch.to(self.logits.device)), batches)

    def check_features(self, event_shape: torch.Size) -> None:
        """Raise unless events of a shape have the features of this transform.

        Raises:
            ValueError: naming both shapes.
        """
        if event_shape[: len(self.feature_shape)] != self.feature_shape:
            raise ValueError(
                f"num_features: expected None, {event_shape[0]} channels or all of "
                f"{tuple(event_shape)}, the shape of the images, got {tuple(self.feature_shape)}."
            )

    def new_statistics(self) -> Histogram:
        return Histogram(self.feature_shape.numel(), self.bins)

    def await_batch(self) -> None:
        super().await_batch()
        with torch.no_grad():
            self.logits.copy_(_log(_wide_uniform(*self._size)))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        check_near_unit_interval(x, self.bins)
        if self._awaits_batch(x, self._batch_size(x)):
            self._initialize(self._samples(x), self._set_from)
        y, log_slope = self._entries(x)
        return y, self._ladj(log_slope)

    def _entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y, and the log of its slope in units of a bin, entry by entry."""
        x = x.to(torch.promote_types(x.dtype, self.logits.dtype))  # 16 bits tell no levels apart
        position = x * self.bins
        index = position.detach().floor().clamp(0, self.bins - 1)
        within = position - index
        inside = within.clamp(0, 1)
        below, above, mass = self._at(index.long(), self.tables())
        lower, upper = below + mass * inside, above + mass * (1 - inside)
        y = torch.special.ndtri(torch.minimum(lower, upper))
        y = torch.where(lower <= upper, y, -y)
        log_slope = _log_slope(mass, y)
        return y + (within - inside) * log_slope.exp(), log_slope

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self._check("y", y)
        if self._awaits_batch(y, self._batch_size(y)):
            raise ValueError(
                "y: this MarginalGaussianization is not initialised yet, and its outputs do not "
                "determine it; put it where its inputs are the data, or call fit(images) first."
            )
        y = y.to(torch.promote_types(y.dtype, self.logits.dtype))
        tables = self.tables()
        inside = self._between_ends(y, tables)
        index = self._bin_of(inside, tables)
        below, above, mass = self._at(index, tables)
        tail = 0.5 * torch.erfc(inside.abs() * math.sqrt(0.5))
        within = torch.where(inside < 0, (tail - below) / mass, 1 - (tail - above) / mass)
        log_slope = _log_slope(mass, inside)
        x = index + within + (y - inside) * (-log_slope).exp()
        return x / self.bins, self._ladj(log_slope)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def tables(self) -> Tables:
        """The marginal's distribution function at the bins."""
        # softmax itself adds 65,536 terms one by one in float32, with an error of 2e-5
        weights = (self.logits - self.logits.detach().amax(1, keepdim=True)).exp()
        shares = weights / weights.sum(1, keepdim=True)
        uniform = torch.full_like(shares[:1], 1 / self.bins)
        mass = (1 - FLOOR) * shares + FLOOR * _beyond_the_ends(uniform[:, 1:-1], OUTER_SHARE)
        # added from either end, so that a small mass below or above keeps its relative precision
        below = mass[:, :-2].cumsum(1)
        above = mass[:, 2:].flip(1).cumsum(1).flip(1)
        return Tables(below, above, mass[:, 1:-1])

    def _at(self, index: Tensor, tables: Tables) -> Tensor:
        """The entries of the tables at bins of the shape of the input, stacked in front."""
        offsets = self.bins * torch.arange(self.feature_shape.numel(), device=index.device)
        ones = [1] * (self._event_dim - len(self.feature_shape))
        index = index + offsets.reshape(*self.feature_shape, *ones)
        return torch.stack(tables).flatten(1)[:, index]

    def _between_ends(self, y: Tensor, tables: Tables) -> Tensor:
        """y, moved to the images of 0 and 1 where it is outside."""
        ones = [1] * (self._event_dim - len(self.feature_shape))
        least = torch.special.ndtri(tables.below[:, 0]).reshape(*self.feature_shape, *ones)
        most = -torch.special.ndtri(tables.above[:, -1]).reshape(*self.feature_shape, *ones)
        return torch.minimum(torch.maximum(y, least), most)

    def _bin_of(self, y: Tensor, tables: Tables) -> Tensor:
        """The bin of each x from its image y; of the shape of y."""
        samples = self._samples(y.detach())
        rows = samples.transpose(0, 1).flatten(1).contiguous()
        tail = 0.5 * torch.erfc(rows.abs() * math.sqrt(0.5))
        below, above = tables.below.detach(), tables.above.detach().flip(1)
        from_below = torch.searchsorted(below, tail, right=True) - 1
        from_above = self.bins - torch.searchsorted(above, tail, right=True)
        index = torch.where(rows < 0, from_below, from_above).clamp(0, self.bins - 1)
        by_sample = index.reshape(samples.transpose(0, 1).shape).transpose(0, 1)
        return by_sample.reshape(y.shape)

    def _ladj(self, log_slope: Tensor) -> Tensor:
        return sum_rightmost(log_slope + math.log(self.bins), self._event_dim)

    def _samples(self, x: Tensor) -> Tensor:
        """The batch reshaped to ``(N, F, *)``."""
        samples = x.reshape(-1, *x.shape[x.dim() - self._event_dim :])
        shared = samples.shape[1 + len(self.feature_shape) :]
        return samples.reshape(len(samples), self.feature_shape.numel(), *shared)

    @property
    def _size(self) -> tuple[int, int]:
        """The number of features and of bins."""
        return self.feature_shape.numel(), self.bins

    def _as_images(self, samples: Tensor) -> Tensor:
        """Samples of shape ``(N, F, *)`` as images; a vector is one row of one channel."""
        events = samples.reshape(len(samples), *self.feature_shape, *samples.shape[2:])
        return events if self._event_dim == 3 else events[:, None, None]

    def _batch_size(self, x: Tensor) -> int:
        return x.shape[: x.dim() - self._event_dim].numel()

    def _check(self, name: str, x: Tensor) -> None:
        shared = self._event_dim - len(self.feature_shape)
        inner = x.shape[max(x.dim() - shared, 0) :]
        check_event_shape(name, x, (*self.feature_shape, *inner))

    def _set_from(self, data: Histogram) -> None:
        """Set the logits to the mixture with the shortest code of the kept images."""
        counts = data.counts.double() + 1
        histogram = functional.pad(counts / counts.sum(1, keepdim=True), (1, 1))
        uniform = _wide_uniform(*self._size)
        images = self._as_images(torch.cat(data.kept).to(self.logits.device))

        def take(share: float) -> None:
            self.logits.copy_(_log((1 - share) * histogram + share * uniform))

        def length(share: float) -> float:
            take(share)
            return code_length(*self._entries(images))

        take(min(SHARES, key=length))

    def upgraded(self, name: str, tensor: Tensor) -> Tensor:
        """Earlier versions saved no masses outside [0, 1]: they were a share of the end bins'."""
        if name != "logits" or tensor.shape != self._size:
            return tensor
        mass = _beyond_the_ends(tensor.double().softmax(1), OUTER_SHARE)
        return _log(mass).to(tensor.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):  # type: ignore[no-untyped-def]
        name = f"{prefix}logits"
        if name in state_dict:
            state_dict = {**state_dict, name: self.upgraded("logits", state_dict[name])}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _wide_uniform(features: int, bins: int) -> Tensor:
    """Masses of a uniform density: below 0, in each bin, and above 1; shape (features, bins+2)."""
    mass = torch.full((features, bins + 2), (1 - 2 * MARGIN) / bins, dtype=torch.float64)
    mass[:, 0] = mass[:, -1] = MARGIN
    return mass


def _beyond_the_ends(mass: Tensor, share: float) -> Tensor:
    """Move a share of the masses of the end bins outside [0, 1]."""
    first, last = mass[:, :1], mass[:, -1:]
    moved = [first * share, first * (1 - share), mass[:, 1:-1], last * (1 - share), last * share]
    return torch.cat(moved, 1)


def _log(mass: Tensor) -> Tensor:
    """The logs of masses, finite where there is none."""
    return mass.clamp_min(torch.finfo(mass.dtype).tiny).log()


def _log_slope(mass: Tensor, y: Tensor) -> Tensor:
    """The log of dy/dx at y, for x in units of a bin: the bin's mass over the normal density."""
    return mass.log() + 0.5 * y**2 + 0.5 * math.log(2 * math.pi)
