"""The groups of figures, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable

from ..findings import Findings
from ..plan import Plan
from .evaluation import evaluation
from .inverse import inverse
from .memory import memory
from .norms import norms
from .own_network import own_network
from .scaling import scaling
from .toy import toy
from .training import training
from .variance import variance
from .vectors import vectors

Group = Callable[[Plan], Findings]

GROUPS: dict[str, Group] = {
    "training": training,
    "own_network": own_network,
    "memory": memory,
    "evaluation": evaluation,
    "inverse": inverse,
    "variance": variance,
    "norms": norms,
    "scaling": scaling,
    "toy": toy,
    "vectors": vectors,
}
