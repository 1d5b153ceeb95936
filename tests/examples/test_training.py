from __future__ import annotations

from itertools import repeat

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta

pytest.importorskip("tqdm")

from examples.training import RATE_EVERY, Budget, train_within


def test_a_budget_is_spent_by_steps_or_by_seconds() -> None:
    assert Budget(200).spent(50, 7.0) == 0.25
    assert Budget(200, seconds=10.0).spent(50, 7.0) == 0.7


def test_training_ends_with_the_budget_and_its_rate_falls() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))

    optimizer = pyro.optim.SGD({"lr": 1.0})
    svi = SVI(model, AutoDelta(model), optimizer, Trace_ELBO())
    steps = 10 * RATE_EVERY
    training = train_within(
        Budget(steps), svi, repeat(()), learning_rate=0.1, last=0.01, description="a normal"
    )
    assert (training.learning_rate, training.steps) == (0.1, steps)
    (each,) = optimizer.optim_objs.values()
    assert each.param_groups[0]["lr"] == pytest.approx(0.1 * 0.01**0.9)


def test_seconds_end_a_training_after_its_first_steps() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))

    svi = SVI(model, AutoDelta(model), pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
    budget = Budget(10**9, seconds=1e-3)
    training = train_within(
        budget, svi, repeat(()), learning_rate=0.1, last=0.01, description="a normal"
    )
    assert training.steps >= 1
    assert training.seconds >= 1e-3
