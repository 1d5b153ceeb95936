"""All sizes of the benchmark, for a GPU and for a quick test on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.operations import SIZES
from benchmarks.published_sizes import PUBLISHED, FlowSize
from benchmarks.speed import plan as speed
from benchmarks.speed.workloads import Workload
from pyro_resflow.flows import ConvBlock

BUDGET = 240.0
"""Seconds of a run."""


@dataclass(frozen=True)
class Plan:
    """Sizes and repetitions.

    Args:
        images: the workloads of the section ``training``.
        vectors: the workloads of the section ``vectors``.
        repeats: timed runs of each contender.
        published: the flow of the section ``published``, by its name.
        batches: its batch sizes.
        steps: its timed steps.
    """

    images: Sequence[Workload]
    vectors: Sequence[Workload]
    repeats: int
    published: Mapping[str, FlowSize]
    batches: Sequence[int]
    steps: int


FULL = Plan(
    images=speed.FULL.images,
    vectors=[
        Workload(f"{size.dim}-d", (size.dim,), size.hidden, size.blocks, size.batch)
        for size in (SIZES[0], SIZES[3])
    ],
    repeats=7,
    published={"CIFAR-10": PUBLISHED["CIFAR-10"]},
    batches=(64, 256),
    steps=4,
)

QUICK = Plan(
    images=speed.QUICK.images,
    vectors=[Workload("3-d", (3,), (4,), blocks=2, batch=4)],
    repeats=2,
    published={
        "tiny": FlowSize((1, 4, 4), (1,), {"network": ConvBlock(4), "end_blocks": 0}, batch=2)
    },
    batches=(32,),
    steps=1,
)
