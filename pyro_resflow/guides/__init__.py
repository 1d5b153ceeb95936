"""Guides: variational posteriors that are residual flows, automatic and amortized."""

from .amortized import AmortizedResidualFlow
from .auto import AutoResidualFlow
from .start import default_logdet, shrink_last_layers

__all__ = ["AmortizedResidualFlow", "AutoResidualFlow", "default_logdet", "shrink_last_layers"]
