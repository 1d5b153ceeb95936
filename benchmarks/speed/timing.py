"""Time several contenders in alternating runs, so that a slow phase affects all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from .findings import Measurement


def seconds(run: Callable[[], object], times: int = 1) -> float:
    """Wall-clock time of a run, the mean of several; with an accelerator's last kernel."""
    _synchronize()
    start = time.perf_counter()
    for _ in range(times):
        run()
    _synchronize()
    return (time.perf_counter() - start) / times


def alternating(
    group: str,
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    at: float | None = None,
    warm_up: int = 1,
) -> list[Measurement]:
    """Time alternating runs. Each round begins with the next contender.

    Args:
        group: the measured quantity.
        runs: the function to run for each contender.
        repeats: number of measured runs of each.
        at: see :class:`Measurement`.
        warm_up: number of rounds before, which are not measured.
    """
    clocks = {name: partial(seconds, run) for name, run in runs.items()}
    return sampled(group, clocks, repeats, "s", at=at, warm_up=warm_up)


def sampled(
    group: str,
    clocks: Mapping[str, Callable[[], float]],
    repeats: int,
    unit: str,
    *,
    at: float | None = None,
    warm_up: int = 1,
) -> list[Measurement]:
    """Call functions that return their own measurement, as in :func:`alternating`."""
    names = list(clocks)
    values: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    for i in range(warm_up + repeats):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            value = clocks[name]()
            if i >= warm_up:
                values[name].append(value)
    return [Measurement(group, name, tuple(values[name]), unit, at) for name in names]


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
