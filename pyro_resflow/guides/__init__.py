"""Variational guides that are residual flows: automatic and amortized."""

from .amortized import AmortizedResidualFlow
from .auto import AutoResidualFlow
from .start import guide_logdet, shrink_last_layers

__all__ = ["AmortizedResidualFlow", "AutoResidualFlow", "guide_logdet", "shrink_last_layers"]
