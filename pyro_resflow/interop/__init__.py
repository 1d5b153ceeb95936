"""Adapters to zuko, NumPyro and ArviZ: separate modules, each with its own extra.

This package imports nothing, so each library is needed only when its adapter is imported.
"""
