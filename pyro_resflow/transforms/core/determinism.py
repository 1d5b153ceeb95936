"""Detect noisy log-determinants, and refuse them in algorithms that need deterministic ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributions import Transform

from ...arguments import checked
from ...callers import callers_in
from ...logdet import LogDetEstimator
from .evaluation import clear_cache
from .exponentials import exponentiated_quantity
from .inside import inside

SAMPLERS = frozenset({"pyro.ops.integrator", "pyro.infer.mcmc.rwkernel"})
"""The modules in which Pyro's MCMC kernels evaluate their energy. HMC and NUTS always use the
integrator: for the first and later steps, for models and for a ``potential_fn``."""

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
    """HMC, NUTS or another Markov chain would use a noisy log-determinant in its energy."""


class NoisyExponentialError(ValueError):
    """An algorithm would exponentiate a noisy log-determinant, which biases its result."""


class EstimatesLogDet:
    """A module that estimates its log-determinant with the estimator ``logdet``."""

    logdet: LogDetEstimator


class FollowsBatches:
    """A module whose function changes with the batches that it sees in training mode."""


class DrawsNoise:
    """A distribution whose ``log_prob`` draws noise at every call."""


def varies_between_calls(module: nn.Module) -> bool:
    """Whether a module's function changes from call to call in its current mode.

    Modules inside it are not considered. A batch norm without running averages depends on the
    batch in evaluation mode too.
    """
    if isinstance(module, BATCH_NORMS):
        return module.training or module.running_mean is None
    if not module.training:
        return False
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout > 0
    if isinstance(module, nn.RNNBase):  # which drops between its layers
        return module.dropout > 0 and module.num_layers > 1
    drops = isinstance(module, DROPOUTS) and module.p > 0
    return drops or isinstance(module, FollowsBatches | nn.RReLU)


def is_deterministic(flow: object) -> bool:
    """Whether repeated calls of ``log_abs_det_jacobian`` or ``log_prob`` give the same value.

    Noise comes from log-determinant estimators, from dropout in training mode, and from
    dequantization. Batch norms in training mode depend on the batches that they see.

    Args:
        flow: a transform, a distribution, or any module that contains some.

    Returns:
        True if nothing inside draws noise or depends on batches.

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
    return not (
        any(_noisy_estimators(flow)) or any(_varying_modules(flow)) or any(_noise_drawing(flow))
    )


@checked()
def set_logdet(flow: object, logdet: LogDetEstimator) -> None:
    """Replace the log-determinant estimator of every residual block inside a flow.

    Use it to evaluate a trained flow with another estimator, for instance ``Exact()`` for HMC,
    NUTS, importance weights and plots. Parameters do not change.

    Args:
        flow: a transform, a distribution, a guide, or any module that contains some.
        logdet: the estimator, see :mod:`pyro_resflow.logdet`.

    Raises:
        ValueError: if the flow contains no residual block.
        TypeError: if ``logdet`` is not a :class:`pyro_resflow.logdet.LogDetEstimator`.

    Example:
        See :func:`is_deterministic`.
    """
    blocks = list(_residual_blocks(flow))
    if not blocks:
        raise ValueError(
            f"flow: expected a flow with residual blocks, found none in {type(flow).__name__}. A "
            "guide builds its blocks at its first call."
        )
    for block in blocks:
        block.logdet = logdet
    clear_cache(flow)


@checked()
@contextmanager
def temporary_logdet(flow: object, logdet: LogDetEstimator) -> Iterator[None]:
    """Context manager that replaces the estimator of every residual block inside a flow.

    Args:
        flow: see :func:`set_logdet`. Nothing changes if the flow contains no residual block.
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
    originals = [(block, block.logdet) for block in _residual_blocks(flow)]
    for block, _ in originals:
        block.logdet = logdet
    clear_cache(flow)
    try:
        yield
    finally:
        for block, estimator in originals:
            block.logdet = estimator
        clear_cache(flow)


def refuse_noise_in_energy(transform: nn.Module) -> None:
    """Raise if an MCMC kernel of Pyro calls and the transform's log-determinant is noisy.

    A kernel compares energies at different points, so that all of them must be one function.

    Raises:
        NoisyEnergyError: naming the estimator or the module, and the remedies.
    """
    if not _called_by_mcmc():
        return
    for part in _varying_modules(transform):
        raise NoisyEnergyError(
            f"transform: its {type(part).__name__} in training mode changes the log-density from "
            "call to call, and HMC, NUTS and other Markov chains need one energy function. Call "
            "eval() on the flow."
        )
    for logdet in _noisy_estimators(transform):
        raise NoisyEnergyError(
            f"logdet: {_name(logdet)} draws new noise at every call, and HMC, NUTS and other "
            "Markov chains need one energy function: they would sample from a wrong "
            "distribution. Use a deterministic log-determinant: "
            "pyro_resflow.transforms.set_logdet(flow, logdet.Exact()), or guide.set_logdet(...), "
            "or in many dimensions logdet.Krylov(6, tail=NoTail(), probe=Frozen()). A "
            "LogDetEstimator of your own says so by a class attribute is_deterministic = True."
        )


def refuse_noise_in_exponential(transform: Transform, x: Tensor, y: Tensor) -> None:
    """Raise if an algorithm of Pyro or torch exponentiates a noisy log-determinant.

    Raises:
        NoisyExponentialError: naming the quantity, the estimator and the remedies.
    """
    quantity = exponentiated_quantity(transform, x, y)
    if quantity is None:
        return
    for logdet in _noisy_estimators(transform):
        raise NoisyExponentialError(
            f"logdet: {_name(logdet)} draws new noise at every call, and {quantity} would "
            "exponentiate it, which makes the mean too large. Use a deterministic "
            "log-determinant: pyro_resflow.transforms.set_logdet(flow, logdet.Exact()), or "
            "guide.set_logdet(...), or in many dimensions logdet.Krylov(6, tail=NoTail(), "
            "probe=Frozen())."
        )


def refuse_draws_in_energy(distribution: object) -> None:
    """Raise if an MCMC kernel of Pyro calls a distribution whose ``log_prob`` draws noise.

    Raises:
        NoisyEnergyError: naming the distribution and the remedy.
    """
    if _called_by_mcmc():
        raise NoisyEnergyError(
            f"{type(distribution).__name__}: its log_prob draws new noise at every call, and HMC, "
            "NUTS and other Markov chains need one energy function. Draw v once, by "
            "dequantizer.condition(images)(dequantizer.noise(images).sample()), and observe it "
            "under the flow's own distribution."
        )


def refuse_noise_in_average(flow: object) -> None:
    """Raise if a flow estimates a log-determinant with noise, before densities are averaged.

    The mean of exp(log p + noise) is larger than the mean of p.

    Args:
        flow: see :func:`is_deterministic`.

    Raises:
        ValueError: naming the estimator and the remedies.
    """
    for logdet in _noisy_estimators(flow):
        raise ValueError(
            f"num_samples: {_name(logdet)} draws new noise at every call, and a mean of densities "
            "over several samples comes out too high when their logarithms are noisy. Use a "
            "deterministic log-determinant: pyro_resflow.transforms.set_logdet(flow, "
            "logdet.Exact()), or in many dimensions logdet.Krylov(6, tail=NoTail(), "
            "probe=Frozen()); or num_samples=1."
        )


def _called_by_mcmc() -> bool:
    """Whether an MCMC kernel of Pyro is among the callers.

    The potential may be any user function, so that only the call stack reveals every kernel.
    """
    return bool(callers_in(SAMPLERS))


def _residual_blocks(flow: object) -> Iterator[EstimatesLogDet]:
    return (part for part in inside(flow) if isinstance(part, EstimatesLogDet))


def _noisy_estimators(flow: object) -> Iterator[LogDetEstimator]:
    estimators = (block.logdet for block in _residual_blocks(flow))
    return (each for each in estimators if not each.is_deterministic)


def _varying_modules(flow: object) -> Iterator[nn.Module]:
    modules = (part for part in inside(flow) if isinstance(part, nn.Module))
    return (module for module in modules if varies_between_calls(module))


def _noise_drawing(flow: object) -> Iterator[object]:
    return (part for part in inside(flow) if isinstance(part, DrawsNoise))


def _name(logdet: LogDetEstimator) -> str:
    return type(logdet.chosen()).__name__
