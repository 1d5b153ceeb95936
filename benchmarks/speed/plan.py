"""All sizes of the benchmark, for the full run and for a quick test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.operations import SIZES, Size

from .workloads import Workload


@dataclass(frozen=True)
class DigitsFlow:
    """The flow of 8x8 digits on which variances are measured.

    Args:
        blocks: residual blocks.
        width: size of both hidden layers of each block.
        steps: training steps.
        samples: held-out digits.
        probes: probes for each digit.
        gradient_probes: probes for which parameter gradients are taken.
        longest: the largest number of roulette terms in the sums.
    """

    blocks: int
    width: int
    steps: int
    samples: int
    probes: int
    gradient_probes: int
    longest: int


@dataclass(frozen=True)
class Plan:
    """Sizes and repetitions.

    Args:
        repeats: timed runs of each contender.
        images: the image workloads. The first one is fitted to digits.
        toy: the workload of many small perceptrons.
        vectors: the sizes of the flows of vectors.
        vector_steps: steps, or samples and scores, of a timed run of these.
        points: samples that the smaller of these draw, and points that they score.
        memory_repeats: new processes for each peak.
        memory_depths: numbers of blocks for the growth of memory.
        memory_batch: batch size for the growth of memory, large compared with the process.
        fitting_steps: training steps of the networks that are evaluated and inverted.
        scaled: the base workload of the curves.
        scales: the values of each axis.
        digits: the flow for variances.
        device: device of all measurements.
        against: root of a checkout of another commit, whose flows of vectors are timed too.
    """

    repeats: int
    images: Sequence[Workload]
    toy: Workload
    vectors: Sequence[Size]
    vector_steps: int
    points: int
    memory_repeats: int
    memory_depths: Sequence[int]
    memory_batch: int
    fitting_steps: int
    scaled: Workload
    scales: Mapping[str, Sequence[int]]
    digits: DigitsFlow
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    against: Path | None = None


FULL = Plan(
    repeats=7,
    images=(
        Workload("1x28x28, 64 wide", (1, 28, 28), (64, 64), blocks=8, batch=16),
        Workload("4x14x14, 256 wide", (4, 14, 14), (256, 256), blocks=8, batch=16),
    ),
    toy=Workload("2-D toy", (2,), (128, 128, 128, 128), blocks=100, batch=256),
    vectors=SIZES,
    vector_steps=5,
    points=1000,
    memory_repeats=2,
    memory_depths=(4, 12, 24),
    memory_batch=64,
    fitting_steps=80,
    scaled=Workload("curves", (1, 16, 16), (32, 32), blocks=4, batch=16),
    scales={
        "depth": (2, 4, 8, 16),
        "batch": (8, 16, 32, 64),
        "width": (16, 32, 64, 128),
        "image size": (8, 16, 24, 32),
    },
    digits=DigitsFlow(
        blocks=10, width=128, steps=500, samples=50, probes=20, gradient_probes=8, longest=16
    ),
)

QUICK = Plan(
    repeats=2,
    images=(Workload("1x4x4, 4 wide", (1, 4, 4), (4, 4), blocks=2, batch=3),),
    toy=Workload("2-D toy", (2,), (4, 4), blocks=2, batch=4),
    vectors=(Size(2, 2, (4,), 16, "density"), Size(3, 2, (4,), 16, "sampling")),
    vector_steps=1,
    points=5,
    memory_repeats=1,
    memory_depths=(1, 2),
    memory_batch=2,
    fitting_steps=2,
    scaled=Workload("curves", (1, 4, 4), (4, 4), blocks=1, batch=2),
    scales={"depth": (1, 2), "batch": (2, 4)},
    digits=DigitsFlow(
        blocks=2, width=8, steps=2, samples=3, probes=2, gradient_probes=2, longest=3
    ),
)
