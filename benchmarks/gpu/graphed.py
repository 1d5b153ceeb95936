"""Record a whole training step as a CUDA graph, one for each number of random products.

A graph replays its kernels on the same memory. Everything that the host decides is fixed when it
is recorded, so that a step must read nothing from the device, and its roulettes take the number of
products from :class:`SharedTail`, the same one in every block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyro_resflow.logdet import Geometric

Step = Callable[[], None]
Record = Callable[[Step], Step]
"""Takes a step some times, and returns a function that repeats it."""

MOST = 3
"""The largest number of random products that is recorded. One step in 81 takes more at the ratio
1/3; it runs eagerly."""

WARM_UP = 3
"""Steps before a recording. They fill caches and let libraries choose their algorithms."""


class SharedTail(Geometric):
    """A geometric tail with one number for all blocks of a step.

    Each block's estimate stays unbiased, and so does their sum; only their roulettes are no longer
    independent of each other.
    """

    number = 0

    def next(self) -> int:
        """Draw a number for a step."""
        return super().draw(None)

    def draw(self, generator: torch.Generator | None) -> int:
        return self.number


def record_on_cuda(step: Step) -> Step:
    """Record a step as a CUDA graph, and return the function that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class GraphedStep:
    """A training step that replays recordings.

    Args:
        step: a step without arguments, on tensors that stay where they are: the batch is copied
            into one tensor, and the optimizer is ``capturable``.
        tail: the tail of all estimators in the step.
        record: records a step.

    Attributes:
        eager: how many steps ran eagerly.
    """

    def __init__(self, step: Step, tail: SharedTail, record: Record = record_on_cuda) -> None:
        self.step = step
        self.tail = tail
        self.record = record
        self.recordings: dict[int, Step] = {}
        self.eager = 0

    def __call__(self) -> None:
        """Take a step."""
        self.take(self.tail.next())

    def take(self, number: int) -> None:
        """Take a step with a number of random products."""
        self.tail.number = number
        if number > MOST:
            self.eager += 1
            self.step()
            return
        if number not in self.recordings:
            self.recordings[number] = self.record(self.step)
        self.recordings[number]()
