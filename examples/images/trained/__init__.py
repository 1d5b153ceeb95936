"""Trained models: weights and what they reach, see README.md."""
