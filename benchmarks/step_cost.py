"""What a training step costs, found by running it where tensors have shapes but no values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.live_memory import LiveMemory
from benchmarks.published_sizes import FlowSize
from benchmarks.training_step import TrainingStep
from pyro_resflow.logdet import Krylov, Tail
from pyro_resflow.logdet.autograd import Memory
from pyro_resflow.nn import update_norms

MEMORY_MODES: tuple[Memory, ...] = ("recompute", "keep")


@dataclass(frozen=True)
class Peak:
    """Bytes at the height of a step above its state and its images: a line in the batch size.

    At each moment of a step its memory is a line in the batch size. The peak is the greatest of
    these lines, hence convex: between two batches it is nowhere above the line through them, and
    below both nowhere below it.

    Attributes:
        fixed: bytes that do not depend on the batch: gradients, for the most part.
        per_image: bytes that each image adds.
    """

    fixed: float
    per_image: float

    @classmethod
    def through(cls, first: tuple[int, int], second: tuple[int, int]) -> Peak:
        """The line through two pairs of a batch and its bytes."""
        per_image = (second[1] - first[1]) / (second[0] - first[0])
        return cls(first[1] - per_image * first[0], per_image)

    def at(self, batch: int) -> float:
        """Bytes at a batch."""
        return self.fixed + self.per_image * batch


@dataclass(frozen=True)
class Cost:
    """What one training step of a flow takes.

    Attributes:
        parameters: number of parameters.
        state: bytes kept from step to step, see :meth:`TrainingStep.state_bytes`.
        image: bytes of one image as it arrives.
        peak: bytes that come on top during a step.
        flops: operations of a step on the size's batch.
        norm_flops: those of them that measure the layers' norms.
    """

    parameters: int
    state: int
    image: int
    peak: Peak
    flops: float
    norm_flops: float

    def largest_batch(self, capacity: float) -> int:
        """The largest batch whose step fits into this many bytes."""
        left = capacity - self.state - self.peak.fixed
        return max(0, math.floor(left / (self.peak.per_image + self.image)))


def predict(size: FlowSize, memory: Memory) -> Cost:
    """The cost of a training step, from running it on the meta device.

    Norms take one Krylov space of products there, for an iteration cannot see whether to go on; in
    training nearly all of them stop there too. The operations are a line in the number of further
    terms that the roulette draws, so its mean stands for it.

    Args:
        size: the flow.
        memory: memory mode of the log-determinant, the default ``Krylov()``.
    """
    none, step = (meta_step(size, memory, further) for further in (0, 1))
    without, operations = (flops(each, size.batch) for each in (none, step))
    few, many = size.batch, 64 * size.batch
    return Cost(
        parameters=sum(parameter.numel() for parameter in step.flow.parameters()),
        state=step.state_bytes(),
        image=step.images(1).nbytes,
        peak=Peak.through((few, peak_bytes(step, few)), (many, peak_bytes(step, many))),
        flops=without + mean_of(Krylov().tail) * (operations - without),
        norm_flops=norm_flops(step),
    )


def meta_step(size: FlowSize, memory: Memory, further_terms: int) -> TrainingStep:
    """A training step on the meta device whose roulettes all draw the same number."""
    logdet = Krylov(tail=FixedDraw(Krylov().tail, further_terms), memory=memory)
    return TrainingStep(size.build(logdet, "meta"), size.bins)


def mean_of(tail: Tail) -> float:
    """The mean number of further terms, the sum of P(N >= j) over j > 0."""
    return sum(tail.survival(j) for j in range(1, 200))


def peak_bytes(step: TrainingStep, batch: int) -> int:
    """The most memory that a step takes above its state and its images, in bytes.

    Gradients and what the optimizer makes in passing are part of it. The step has to have run
    before: its first run makes the optimizer's state.
    """
    images = step.images(batch)
    step.optimizer.zero_grad()
    with LiveMemory() as memory:
        step(images)
    return memory.peak


def flops(step: TrainingStep, batch: int) -> int:
    """Floating-point operations of a step, two for a multiplication with an addition.

    Convolutions and matrix products are counted. Elementwise operations, reductions, products of a
    matrix with a vector, eigenvalue problems and linear systems are not.
    """
    images = step.images(batch)
    with FlopCounterMode(display=False) as counter:
        step(images)
    return counter.get_total_flops()


def norm_flops(step: TrainingStep) -> int:
    """Operations of measuring the norms of all layers; the step has to have run before."""
    with FlopCounterMode(display=False) as counter:
        update_norms(step.flow)
    return counter.get_total_flops()


class FixedDraw:
    """A tail of Russian roulette that always draws the same number of further terms.

    Args:
        tail: the distribution that it stands for, which gives the weights.
        number: what it draws.
    """

    def __init__(self, tail: Tail, number: int) -> None:
        self.tail = tail
        self.number = number

    def draw(self, generator: torch.Generator | None) -> int:
        """The fixed number."""
        return self.number

    def survival(self, j: int) -> float:
        """P(N >= j) under the distribution that this stands for."""
        return self.tail.survival(j)
