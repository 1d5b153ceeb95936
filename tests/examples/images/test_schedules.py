"""Learning rates."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from examples.images.schedules import OneCycle, WarmUpThenDecay, WarmUpThenSteps


def rates(schedule: type, steps: int, **settings: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=2.0)
    scheduler = schedule(optimizer, **settings)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warm_up_then_decay():
    found = rates(WarmUpThenDecay, 8, warm_up=2, decay_from=4, decay=0.5, floor=0.2)
    assert found == pytest.approx([0.0, 1.0, 2.0, 2.0, 2.0, 1.0, 0.5, 0.4])


def test_warm_up_then_steps():
    found = rates(WarmUpThenSteps, 7, warm_up=2, milestones=[3, 5], gamma=0.1)
    assert found == pytest.approx([0.0, 1.0, 2.0, 0.2, 0.2, 0.02, 0.02])


def test_schedules_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"warm_up, decay_from: .* got 5 and 4"):
        rates(WarmUpThenDecay, 1, warm_up=5, decay_from=4)
    with pytest.raises(ValueError, match=r"warm_up: .* got 0"):
        rates(WarmUpThenSteps, 1, warm_up=0, milestones=[])


CYCLE = {"max_lr": 2.0, "total_steps": 10, "cycle_momentum": False}


def test_one_cycle_is_that_of_torch():
    assert rates(OneCycle, 10, **CYCLE) == rates(OneCycleLR, 10, **CYCLE)


def test_the_last_rate_of_one_cycle_stays():
    assert rates(OneCycle, 15, **CYCLE)[10:] == [rates(OneCycleLR, 10, **CYCLE)[-1]] * 5
    with pytest.raises(ValueError, match="Tried to step"):
        rates(OneCycleLR, 15, **CYCLE)
