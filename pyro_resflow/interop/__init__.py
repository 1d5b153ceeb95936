"""Adapters to zuko, NumPyro and ArviZ: each a module of its own, with an extra of its own.

Nothing is imported here, so that none of them is needed until its adapter is imported.
"""
