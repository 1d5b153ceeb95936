"""Plain ``nn.Sequential`` networks, evaluated in stages where that is the same function."""

from .network import sequential_network, why_autograd

__all__ = ["sequential_network", "why_autograd"]
