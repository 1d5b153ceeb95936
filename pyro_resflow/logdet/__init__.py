"""Estimators of log|det(I + J_g(x))| (torch only)."""

from .autograd import Estimate
from .default import default_logdet
from .estimator import LogDetEstimator
from .exact import Exact
from .functions import LOG_CAYLEY, LOG_ONE_PLUS, SpectralFunction
from .in_elbo import EstimatedInElbo
from .krylov import AdaptiveKrylov, Krylov
from .probes import Frozen, Gaussian, Probe, Rademacher
from .series import PowerSeries, RussianRoulette
from .stochastic import StochasticEstimator
from .tails import Geometric, NoTail, Poisson, Tail

__all__ = [
    "LOG_CAYLEY",
    "LOG_ONE_PLUS",
    "AdaptiveKrylov",
    "Estimate",
    "EstimatedInElbo",
    "Exact",
    "Frozen",
    "Gaussian",
    "Geometric",
    "Krylov",
    "LogDetEstimator",
    "NoTail",
    "Poisson",
    "PowerSeries",
    "Probe",
    "Rademacher",
    "RussianRoulette",
    "SpectralFunction",
    "StochasticEstimator",
    "Tail",
    "default_logdet",
]
