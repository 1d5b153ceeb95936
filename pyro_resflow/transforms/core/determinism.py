"""Whether a log-determinant is one function, and a refusal where Pyro's samplers need one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributions import Transform

from ...arguments import checked
from ...callers import callers_in
from ...logdet import LogDetEstimator
from .evaluation import clear_cache
from .exponentials import exponential_asked_for
from .inside import inside

SAMPLERS = frozenset({"pyro.ops.integrator", "pyro.infer.mcmc.rwkernel"})
"""The modules through which every kernel of Pyro's evaluates its energy: HMC and NUTS, the first
and the later steps, models and functions given as ``potential_fn``, go through the integrator."""

DROPOUTS = (
    nn.Dropout
    | nn.Dropout1d
    | nn.Dropout2d
    | nn.Dropout3d
    | nn.AlphaDropout
    | nn.FeatureAlphaDropout
)
BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class NoisyEnergyError(ValueError):
    """A log-determinant of fresh noise would enter the energy of HMC or NUTS."""


class NoisyExponentialError(ValueError):
    """A log-determinant of fresh noise would stand in an exponent."""


class EstimatesLogDet:
    """A module whose log-determinant comes from an estimator, its attribute ``logdet``."""

    logdet: LogDetEstimator


class FollowsBatches:
    """A module that changes with the batches that it sees, while it is in training mode."""


class DrawsNoise:
    """A distribution whose ``log_prob`` draws noise at every call."""


def unsettled(module: nn.Module) -> bool:
    """Whether a module, by itself, makes each call another function in the mode that it is in.

    A batch norm without running averages does so in evaluation mode too.
    """
    if isinstance(module, BATCH_NORMS):
        return module.training or module.running_mean is None
    if not module.training:
        return False
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout > 0
    drops = isinstance(module, DROPOUTS) and module.p > 0
    return drops or isinstance(module, FollowsBatches | nn.RReLU)


def is_deterministic(flow: object) -> bool:
    """Whether two calls of ``log_abs_det_jacobian`` or ``log_prob`` at one point give one value.

    Fresh noise comes from estimators of log-determinants, from dropout in training mode, and from
    dequantization. Batch norms in training mode follow the batches that they see.

    Args:
        flow: a transform, a distribution, or any module that holds some.

    Example:
        >>> from pyro_resflow import residual_flow
        >>> from pyro_resflow.logdet import Exact
        >>> from pyro_resflow.transforms import is_deterministic, set_logdet
        >>> flow = residual_flow(20)
        >>> is_deterministic(flow)
        False
        >>> set_logdet(flow, Exact())
        >>> is_deterministic(flow)
        True
    """
    return not any(_noisy(flow)) and not any(_unsettled(flow)) and not any(_drawing(flow))


@checked()
def set_logdet(flow: object, logdet: LogDetEstimator) -> None:
    """Give every residual block inside a flow another estimator of its log-determinant.

    For a flow that was trained with one estimator and is used with another: ``Exact()`` for HMC,
    NUTS, importance weights and plots. Parameters stay as they are.

    Args:
        flow: a transform, a distribution, a guide, or any module that holds some.
        logdet: the estimator, see :mod:`pyro_resflow.logdet`.

    Raises:
        ValueError: if there is no residual block inside.
        TypeError: for a ``logdet`` that is not a :class:`pyro_resflow.logdet.LogDetEstimator`.
    """
    blocks = list(_blocks(flow))
    if not blocks:
        raise ValueError(
            f"flow: expected residual blocks inside, found none in {type(flow).__name__}. A "
            "guide has its blocks from its first call on."
        )
    for block in blocks:
        block.logdet = logdet
    clear_cache(flow)


@checked()
@contextmanager
def temporary_logdet(flow: object, logdet: LogDetEstimator) -> Iterator[None]:
    """Within a ``with`` statement, every residual block inside a flow uses another estimator.

    Args:
        flow: see :func:`set_logdet`; without residual blocks inside nothing changes.
        logdet: the estimator, see :mod:`pyro_resflow.logdet`.

    Example:
        >>> from pyro_resflow import residual_flow
        >>> from pyro_resflow.logdet import Exact
        >>> from pyro_resflow.transforms import is_deterministic, temporary_logdet
        >>> flow = residual_flow(20)
        >>> with temporary_logdet(flow, Exact()):
        ...     is_deterministic(flow)
        True
        >>> is_deterministic(flow)
        False
    """
    usual = [(block, block.logdet) for block in _blocks(flow)]
    for block, _ in usual:
        block.logdet = logdet
    clear_cache(flow)
    try:
        yield
    finally:
        for block, estimator in usual:
            block.logdet = estimator
        clear_cache(flow)


def refuse_noise_in_energy(transform: nn.Module) -> None:
    """Raise if a sampler of Pyro's is asking and the transform's log-determinant is noisy.

    A kernel compares energies at different points and differentiates them: it needs one function.

    Raises:
        NoisyEnergyError: naming the estimator and the remedies.
    """
    if not _a_sampler_is_asking():
        return
    for part in _unsettled(transform):
        raise NoisyEnergyError(
            f"transform: its {type(part).__name__} in training mode makes each call another "
            "function, and HMC, NUTS and other Markov chains need one energy function. Call "
            "eval() on the flow."
        )
    for logdet in _noisy(transform):
        raise NoisyEnergyError(
            f"logdet: {_name(logdet)} draws new noise at every call, and HMC, NUTS and other "
            "Markov chains need one energy function: they would sample from a wrong "
            "distribution. Use a deterministic log-determinant: "
            "pyro_resflow.transforms.set_logdet(flow, logdet.Exact()), or guide.set_logdet(...), "
            "or in many dimensions logdet.Krylov(6, tail=NoTail(), probe=Frozen()). A "
            "LogDetEstimator of your own says so by a class attribute is_deterministic = True."
        )


def refuse_noise_in_exponential(transform: Transform, x: Tensor, y: Tensor) -> None:
    """Raise if a caller of Pyro's or torch's exponentiates a log-determinant that is noisy.

    Raises:
        NoisyExponentialError: naming what is computed, the estimator and the remedies.
    """
    what = exponential_asked_for(transform, x, y)
    if what is None:
        return
    for logdet in _noisy(transform):
        raise NoisyExponentialError(
            f"logdet: {_name(logdet)} draws new noise at every call, and {what} would stand or "
            "fall with exponentials of it, whose mean is too large. Use a deterministic "
            "log-determinant: pyro_resflow.transforms.set_logdet(flow, logdet.Exact()), or "
            "guide.set_logdet(...), or in many dimensions logdet.Krylov(6, tail=NoTail(), "
            "probe=Frozen())."
        )


def refuse_draws_in_energy(distribution: object) -> None:
    """Raise if a sampler of Pyro's is asking a distribution whose ``log_prob`` draws noise.

    Raises:
        NoisyEnergyError: naming the distribution and the remedy.
    """
    if _a_sampler_is_asking():
        raise NoisyEnergyError(
            f"{type(distribution).__name__}: its log_prob draws new noise at every call, and HMC, "
            "NUTS and other Markov chains need one energy function. Draw v once, by "
            "dequantizer.condition(images)(dequantizer.noise(images).sample()), and observe it "
            "under the flow's own distribution."
        )


def refuse_noise_in_average(flow: object) -> None:
    """Raise if a log-determinant inside is estimated with fresh noise.

    The mean of exp(log p + noise) is larger than that of p.

    Args:
        flow: see :func:`is_deterministic`.

    Raises:
        ValueError: naming the estimator and the remedies.
    """
    for logdet in _noisy(flow):
        raise ValueError(
            f"num_samples: {_name(logdet)} draws new noise at every call, and a mean of densities "
            "over several samples comes out too high when their logarithms are noisy. Use a "
            "deterministic log-determinant: pyro_resflow.transforms.set_logdet(flow, "
            "logdet.Exact()), or in many dimensions logdet.Krylov(6, tail=NoTail(), "
            "probe=Frozen()); or num_samples=1."
        )


def _a_sampler_is_asking() -> bool:
    """Whether one of Pyro's kernels is among the callers.

    The potential may be any function of the user's, so that the call stack is the only trace that
    all kernels leave. Looking costs about half a microsecond for each caller.
    """
    return bool(callers_in(SAMPLERS))


def _blocks(flow: object) -> Iterator[EstimatesLogDet]:
    return (part for part in inside(flow) if isinstance(part, EstimatesLogDet))


def _noisy(flow: object) -> Iterator[LogDetEstimator]:
    """The estimators inside that do not say of themselves that they are deterministic."""
    estimators = (block.logdet for block in _blocks(flow))
    return (each for each in estimators if not each.is_deterministic)


def _unsettled(flow: object) -> Iterator[nn.Module]:
    """The modules inside that make each call another function."""
    return (part for part in inside(flow) if isinstance(part, nn.Module) and unsettled(part))


def _drawing(flow: object) -> Iterator[object]:
    return (part for part in inside(flow) if isinstance(part, DrawsNoise))


def _name(logdet: LogDetEstimator) -> str:
    return type(logdet).__name__
