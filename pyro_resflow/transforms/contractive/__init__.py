"""Residual and monotone transforms by a contraction."""
