"""Small flows of zuko, and the sizes of their events and contexts."""

from __future__ import annotations

from collections.abc import Callable

import pyro_resflow.interop.zuko  # noqa: F401  # before zuko: it keeps the validation of arguments

import zuko  # isort: skip

D, C = 3, 2

ZUKO_FLOWS: dict[str, Callable[[], zuko.lazy.Flow]] = {
    "nsf": lambda: zuko.flows.NSF(D, transforms=2, hidden_features=(8,)),
    "maf": lambda: zuko.flows.MAF(D, transforms=2, hidden_features=(8,)),
    "cnf": lambda: zuko.flows.CNF(D, hidden_features=(8,)),
    "nice": lambda: zuko.flows.NICE(D, transforms=2, hidden_features=(8,)),
}
