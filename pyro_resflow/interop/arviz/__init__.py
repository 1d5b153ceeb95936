r"""From variational inference and NeuTra to ArviZ.

ArviZ reads Pyro's MCMC; this module converts results of SVI. Draws of the guide are weighted by
the model, :math:`\log w = \log p(z, x) - \log q(z)`. Flows in the model or the guide evaluate
their exact log-determinant for this, because the weights are exponentials.

ArviZ 0.x and ArviZ 1 both work and give the same numbers, because this package smooths the
weights itself. The results are containers of the installed version.
"""

from .conversion import from_neutra, from_svi
from .cross_validation import loo
from .smoothing import psis
from .weights import pareto_k

__all__ = ["from_neutra", "from_svi", "loo", "pareto_k", "psis"]
