"""Trained models: their weights and their scores, see README.md."""
