"""Checkpoints of the reference implementation, read as flows of this package."""
