"""Transforms made of a contraction: residual and monotone ones."""
