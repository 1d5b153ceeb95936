"""Normalisation of features by the data."""
