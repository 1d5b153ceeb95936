"""Whether a log-determinant is one function, and a refusal where Pyro's samplers need one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch.distributions import Transform

SAMPLERS = frozenset({"pyro.ops.integrator", "pyro.infer.mcmc.rwkernel"})
"""The modules through which every kernel of Pyro's evaluates its energy: HMC and NUTS, the first
and the later steps, models and functions given as ``potential_fn``, go through the integrator."""


class NoisyEnergyError(ValueError):
    """A log-determinant of fresh noise would enter the energy of HMC or NUTS."""


class EstimatesLogDet:
    """A module whose log-determinant comes from an estimator, its attribute ``logdet``."""

    logdet: Callable[..., tuple[Tensor, Tensor]]


def is_deterministic(transform: nn.Module) -> bool:
    """Whether two calls of ``log_abs_det_jacobian`` at one point give one value.

    Fresh noise comes from estimators of log-determinants, and from dropout in training mode.

    Args:
        transform: a transform, or any module that holds some.

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
    return not any(_noisy(transform.modules())) and not any(_active_dropout(transform))


def set_logdet(module: nn.Module, logdet: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Give every residual block inside a module another estimator of its log-determinant.

    For a flow that was trained with one estimator and is used with another: ``Exact()`` for HMC,
    NUTS, importance weights and plots. Parameters stay as they are.

    Args:
        module: a transform, a guide, or any module that holds some.
        logdet: the estimator, see :mod:`pyro_resflow.logdet`.

    Raises:
        ValueError: if there is no residual block inside.
    """
    blocks = list(_blocks(module.modules()))
    if not blocks:
        raise ValueError(
            f"module: expected residual blocks inside, found none in {type(module).__name__}. A "
            "guide has its blocks from its first call on."
        )
    for block in blocks:
        block.logdet = logdet
    for part in module.modules():
        if isinstance(part, Transform):
            cast(Any, part).clear_cache()


def refuse_noise_in_energy(transform: nn.Module) -> None:
    """Raise if a sampler of Pyro's is asking and the transform's log-determinant is noisy.

    A kernel compares energies at different points and differentiates them: it needs one function.

    Raises:
        NoisyEnergyError: naming the estimator and the remedies.
    """
    if not _a_sampler_is_asking():
        return
    for dropout in _active_dropout(transform):
        raise NoisyEnergyError(
            f"transform: its {type(dropout).__name__} draws new noise at every call, and HMC, "
            "NUTS and other Markov chains need one energy function. Call eval() on the flow."
        )
    for logdet in _noisy(transform.modules()):
        raise NoisyEnergyError(
            f"logdet: {_name(logdet)} draws new noise at every call, and HMC, NUTS and other "
            "Markov chains need one energy function: they would sample from a wrong "
            "distribution. Use a deterministic log-determinant: "
            "pyro_resflow.transforms.set_logdet(flow, logdet.Exact()), or guide.set_logdet(...), "
            "or in many dimensions logdet.Krylov(6, tail=NoTail(), probe=Frozen()). An "
            "estimator of your own says so with an attribute is_deterministic = True."
        )


def refuse_noise_in_average(parts: Iterable[object]) -> None:
    """Raise if one of these estimates its log-determinant with fresh noise.

    The mean of exp(log p + noise) is larger than that of p.

    Args:
        parts: the transforms, and other objects, that a density is made of.

    Raises:
        ValueError: naming the estimator and the remedies.
    """
    for logdet in _noisy(parts):
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
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in SAMPLERS:
            return True
        frame = frame.f_back
    return False


def _blocks(parts: Iterable[object]) -> Iterator[EstimatesLogDet]:
    return (part for part in parts if isinstance(part, EstimatesLogDet))


def _noisy(parts: Iterable[object]) -> Iterator[object]:
    """The estimators among them that do not say of themselves that they are deterministic."""
    estimators = (block.logdet for block in _blocks(parts))
    return (each for each in estimators if not getattr(each, "is_deterministic", False))


def _active_dropout(module: nn.Module) -> Iterator[nn.Module]:
    dropouts = (part for part in module.modules() if isinstance(part, nn.Dropout))
    return (part for part in dropouts if part.training and part.p > 0)


def _name(logdet: object) -> str:
    return getattr(logdet, "__name__", type(logdet).__name__)
