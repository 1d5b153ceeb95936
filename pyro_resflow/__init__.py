"""Normalizing flows with free-form Jacobians for Pyro."""

from . import (
    classifiers,
    distributions,
    flows,
    guides,
    hybrid,
    linearization,
    logdet,
    nn,
    solvers,
    transforms,
)
from .flows import conditional_residual_flow, residual_flow
from .transforms import conditional_residual, residual, summary

__version__ = "0.1.0"

__all__ = [
    "classifiers",
    "conditional_residual",
    "conditional_residual_flow",
    "distributions",
    "flows",
    "guides",
    "hybrid",
    "linearization",
    "logdet",
    "nn",
    "residual",
    "residual_flow",
    "solvers",
    "summary",
    "transforms",
]
