"""Estimators of log|det(I + J_g(x))| (torch only)."""

from .estimator import StochasticEstimator
from .exact import Exact
from .krylov import AdaptiveKrylov, Krylov
from .probes import Frozen, Gaussian, Probe, Rademacher
from .series import PowerSeries, RussianRoulette
from .tails import Geometric, NoTail, Poisson, Tail

__all__ = [
    "AdaptiveKrylov",
    "Exact",
    "Frozen",
    "Gaussian",
    "Geometric",
    "Krylov",
    "NoTail",
    "Poisson",
    "PowerSeries",
    "Probe",
    "Rademacher",
    "RussianRoulette",
    "StochasticEstimator",
    "Tail",
]
