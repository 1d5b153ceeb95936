"""Coupling layers, their masks and elementwise maps, and the coupling step of Flow++."""
