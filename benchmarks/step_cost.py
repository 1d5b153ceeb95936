"""Predict the cost of a training step by running it on the meta device, without values."""

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
    """Peak memory of a step above its state and its images, linear in the batch size.

    At each moment of a step, the memory is a linear function of the batch size. The peak is the
    maximum of these functions, which is convex. Between two batch sizes it is therefore at most
    the line through them, and below both it is at least this line.

    Attributes:
        fixed: bytes that do not depend on the batch size, mostly gradients.
        per_image: bytes for each image.
    """

    fixed: float
    per_image: float

    @classmethod
    def through(cls, first: tuple[int, int], second: tuple[int, int]) -> Peak:
        """The line through two pairs of a batch size and its bytes."""
        per_image = (second[1] - first[1]) / (second[0] - first[0])
        return cls(first[1] - per_image * first[0], per_image)

    def at(self, batch: int) -> float:
        """Bytes at a batch size."""
        return self.fixed + self.per_image * batch


@dataclass(frozen=True)
class Cost:
    """The cost of one training step of a flow.

    Attributes:
        parameters: number of parameters.
        state: bytes kept between steps, see :meth:`TrainingStep.state_bytes`.
        image: bytes of one integer image.
        peak: additional bytes during a step.
        flops: operations of a step on the batch of the size.
        norm_flops: the part of these operations that measures the layers' norms.
    """

    parameters: int
    state: int
    image: int
    peak: Peak
    flops: float
    norm_flops: float

    def largest_batch(self, capacity: float) -> int:
        """The largest batch size whose step fits into this number of bytes."""
        left = capacity - self.state - self.peak.fixed
        return max(0, math.floor(left / (self.peak.per_image + self.image)))


def predict(size: FlowSize, memory: Memory) -> Cost:
    """Predict the cost of a training step by running it on the meta device.

    On the meta device, each norm takes one Krylov space, because the iteration cannot test its
    convergence. In training nearly all norms stop there, too. The number of operations is linear
    in the number of further terms that the roulette draws, so the prediction uses its mean.

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
    """A training step on the meta device in which every roulette draws the same number."""
    logdet = Krylov(tail=FixedDraw(Krylov().tail, further_terms), memory=memory)
    return TrainingStep(size.build(logdet, "meta"), size.bins)


def mean_of(tail: Tail) -> float:
    """The mean number of further terms, the sum of P(N >= j) over j > 0."""
    return sum(tail.survival(j) for j in range(1, 200))


def peak_bytes(step: TrainingStep, batch: int) -> int:
    """The peak memory of a step above its state and its images, in bytes.

    It includes gradients and the optimizer's temporary tensors. Run the step once before: the
    first run creates the optimizer's state.
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
    """Operations that measure the norms of all layers. Run the step once before."""
    with FlopCounterMode(display=False) as counter:
        update_norms(step.flow)
    return counter.get_total_flops()


class FixedDraw:
    """A tail of Russian roulette that always draws the same number of further terms.

    Args:
        tail: the distribution to replace, which determines the weights of the terms.
        number: the number to draw.
    """

    def __init__(self, tail: Tail, number: int) -> None:
        self.tail = tail
        self.number = number

    def draw(self, generator: torch.Generator | None) -> int:
        """The fixed number."""
        return self.number

    def survival(self, j: int) -> float:
        """P(N >= j) under the replaced distribution."""
        return self.tail.survival(j)
