"""Check that recorded steps train as eager ones do, before their time is taken."""

from __future__ import annotations

import torch

from benchmarks.speed.contenders import OurModel
from benchmarks.speed.equality import equal_models
from benchmarks.speed.workloads import Workload

from .contenders import FixedProbe, Graphed, Unread, tail_of
from .graphed import WARM_UP, GraphedStep, Record

WITHIN = 1e-4
"""Largest difference between parameters after a few steps of 1e-4 each: kernels that add in
another order change the last digits of a gradient, and Adam divides by the gradient's size."""


class DisagreementError(RuntimeError):
    """Recorded steps lead to other parameters than eager ones."""


def check_recordings(
    workload: Workload, device: torch.device, record: Record, numbers: tuple[int, ...] = (0, 1, 0)
) -> float:
    """Take the same steps eagerly and by recordings.

    Args:
        workload: the workload.
        device: the device.
        record: records a step.
        numbers: the number of random products of each replayed step.

    Returns:
        The largest difference between parameters.

    Raises:
        DisagreementError: if it is above :data:`WITHIN`.
    """
    eager, recorded = Unread("eager", FixedProbe()), Graphed("recorded", FixedProbe(), record)
    models = equal_models((eager, recorded), workload, device)
    x = workload.data().to(device)
    probe_of(models["recorded"])._signs = probe_of(models["eager"]).sample((1, *x.shape), x, None)
    step = eager.step_of(models["eager"], x)
    replayed = recorded.training(models["recorded"], x)
    assert isinstance(replayed, GraphedStep)
    for number in numbers:
        warm_up = 0 if number in replayed.recordings else WARM_UP
        tail_of(models["eager"]).number = number
        for _ in range(warm_up + 1):
            step()
        replayed.take(number)
    pairs = zip(models["eager"].parameters(), models["recorded"].parameters(), strict=True)
    difference = max(float((a - b).detach().abs().max()) for a, b in pairs)
    if not difference <= WITHIN:
        raise DisagreementError(
            f"{workload.name}: parameters after recorded steps differ from those after eager "
            f"ones by {difference:.1e}, so their time is not reported."
        )
    return difference


def probe_of(model: torch.nn.Module) -> FixedProbe:
    """The probe that the blocks of a model share."""
    assert isinstance(model, OurModel)
    probe = model.blocks[0].logdet.probe
    assert isinstance(probe, FixedProbe)
    return probe
