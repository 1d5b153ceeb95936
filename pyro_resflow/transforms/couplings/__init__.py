"""Coupling layers: masks, maps of the changed half, and the step of Flow++."""
