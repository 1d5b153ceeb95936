r"""From variational inference and NeuTra to ArviZ.

ArviZ reads Pyro's MCMC; this module reads what SVI has fitted. Draws of the guide are weighed
against the model, :math:`\log w = \log p(z, x) - \log q(z)`. Flows in the model or the guide
evaluate their exact log-determinant for that: an estimate would enter an exponential.

Written for ArviZ 0.x. ArviZ 1 keeps a ``DataTree`` in place of ``InferenceData`` and is refused.
"""

from .conversion import from_neutra, from_svi
from .weights import Loo, loo, pareto_k

__all__ = ["Loo", "from_neutra", "from_svi", "loo", "pareto_k"]
