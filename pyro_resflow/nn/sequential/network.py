"""How a plain network is evaluated: in stages, or by autograd."""

from __future__ import annotations

from torch import nn

from ...linearization import AutogradNetwork, Linearizable, linearizable_module
from ..stages import StagedNetwork
from .recognition import stages_or_reason


@linearizable_module.register
def sequential_network(net: nn.Sequential) -> Linearizable:
    """The stages of an ``nn.Sequential`` if it has some, else its :class:`AutogradNetwork`."""
    found = stages_or_reason(net)
    return AutogradNetwork(net) if isinstance(found, str) else StagedNetwork(found)


def why_autograd(net: object) -> str:
    """Why a residual block evaluates its network by autograd, which is slower than in stages.

    Both ways compute the same values and gradients. The networks of this package are evaluated in
    stages, and so is an ``nn.Sequential``, nested or not, of ``Linear``, ``Conv2d``,
    ``ConvTranspose2d``, ``SiLU``, ``ELU``, ``Tanh``, ``Sigmoid``, ``Softplus``, ``GELU``,
    ``LeakyReLU``, ``Identity``, ``Flatten`` and ``Unflatten``. Its weights may have torch's
    parametrizations ``weight_norm`` and ``orthogonal``, ``spectral_norm`` in evaluation mode, and
    those of deel-torchlip. Hooks, methods that a subclass overrides, and frozen weights rule it
    out. The answer is about the network as it is now.

    Args:
        net: the network of a block.

    Returns:
        The layer and what rules it out; empty if the network is evaluated in stages.

    Example:
        >>> from torch import nn
        >>> from pyro_resflow.nn import why_autograd
        >>> why_autograd(nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3)))
        ''
        >>> why_autograd(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)))
        '1 (ReLU): its class has no stages'
    """
    if isinstance(net, nn.Sequential) and not isinstance(net, Linearizable):
        found = stages_or_reason(net)
        return found if isinstance(found, str) else ""
    if isinstance(net, AutogradNetwork):
        return "net: it is an AutogradNetwork"
    if isinstance(net, Linearizable):
        return ""
    return f"net ({type(net).__name__}): its class has no stages"
