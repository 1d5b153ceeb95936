"""Invertible linear maps of vectors and of channels."""
