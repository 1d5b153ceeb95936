r"""From variational inference and NeuTra to ArviZ.

ArviZ reads Pyro's MCMC; this module reads what SVI has fitted. Draws of the guide are weighed
against the model, :math:`\log w = \log p(z, x) - \log q(z)`. Flows in the model or the guide
evaluate their exact log-determinant for that: an estimate would enter an exponential.

ArviZ 0.x and ArviZ 1 both work, and give the same numbers: the smoothing of the weights is our
own. What comes back is the container of the version that is installed.
"""

from .conversion import from_neutra, from_svi
from .cross_validation import loo
from .smoothing import psis
from .weights import pareto_k

__all__ = ["from_neutra", "from_svi", "loo", "pareto_k", "psis"]
