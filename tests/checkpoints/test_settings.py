"""Estimators, solvers and numbers are loaded as they were last set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_resflow import residual, residual_flow
from pyro_resflow.logdet import (
    AdaptiveKrylov,
    Exact,
    Frozen,
    Gaussian,
    Geometric,
    Krylov,
    NoTail,
    Poisson,
    PowerSeries,
    RussianRoulette,
)
from pyro_resflow.rebuilding import Rebuildable
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov
from pyro_resflow.transforms import Compose, Logit, Residual, set_logdet
from tests.checkpoints.roundtrips import again

STRATEGIES: dict[str, Callable[[], Any]] = {
    "exact": lambda: Exact(dtype=torch.float64, chunk_size=3),
    "krylov": lambda: Krylov(3, tail=NoTail(), probe=Frozen(Gaussian(), seed=7)),
    "adaptive": lambda: AdaptiveKrylov(1e-2, max_terms=9, tail=Geometric(0.25)),
    "roulette": lambda: RussianRoulette(2, tail=Poisson(3.0), num_probes=2, memory="keep"),
    "series": lambda: PowerSeries(7),
}


def attributes(strategy: Any) -> Any:
    """All that a strategy holds, and those inside it."""
    if not isinstance(strategy, Rebuildable):
        return strategy
    held = {name: value for name, value in vars(strategy).items() if name != "_made_with"}
    return type(strategy), {name: attributes(value) for name, value in held.items()}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_estimators(name: str, path: Path) -> None:
    logdet = STRATEGIES[name]()
    given = again(residual_flow(3, 2, [8], logdet=logdet), path)
    changed = residual_flow(3, 2, [8])
    set_logdet(changed, logdet)
    for flow in (given, again(changed, path)):
        blocks = [part for part in flow.modules() if isinstance(part, Residual)]
        assert attributes(blocks[0].logdet) == attributes(logdet)
        assert blocks[0].logdet is blocks[1].logdet  # one for all, as it was


def test_an_estimator_changed_in_place(path: Path) -> None:
    flow = residual(3, [8], logdet=Krylov(probe=Frozen(seed=1)))
    flow.logdet.probe.seed = 2
    flow.logdet.terms = 5
    assert attributes(again(flow, path).logdet) == attributes(flow.logdet)


@pytest.mark.parametrize(
    "solver", [FixedPoint(tolerance=1e-3), NewtonKrylov(), Anderson(3, patience=2)]
)
def test_solvers(solver: Any, path: Path) -> None:
    assert attributes(again(residual(3, [8], solver=solver), path).solver) == attributes(solver)
    flow = residual(3, [8])
    flow.solver = solver
    assert attributes(again(flow, path).solver) == attributes(solver)


def test_numbers_that_were_set(path: Path) -> None:
    flow = Compose([Logit(0.05), residual(3, [8])])
    flow.parts[0].alpha = 0.1
    flow.parts[1].net[0].norm.coefficient = 0.5
    loaded = again(flow, path)
    assert loaded.parts[0].alpha == 0.1
    assert loaded.parts[1].net[0].norm.coefficient == 0.5
    x = 0.1 + 0.8 * torch.rand(4, 3)
    assert torch.equal(loaded(x), flow(x))
