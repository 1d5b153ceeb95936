"""This package in ways that a GPU may like better."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from benchmarks.speed.contenders import Contender, Model, OurModel, Step
from benchmarks.speed.workloads import Workload
from pyro_resflow.logdet import Krylov, Probe
from pyro_resflow.nn import SpectralNorm

from .graphed import GraphedStep, Record, SharedTail, record_on_cuda

ITERATIONS = 12
"""Products for each norm in a step: one cycle."""


def without_tolerance(model: torch.nn.Module) -> None:
    """Let all norms take a fixed number of iterations, so that they read nothing."""
    for norm in model.modules():
        if isinstance(norm, SpectralNorm):
            norm.tolerance, norm.max_iterations = None, ITERATIONS


@dataclass(frozen=True)
class Unread(Contender):
    """This package, in steps that read nothing from the device.

    Args:
        probe: see :class:`pyro_resflow.logdet.Krylov`.
    """

    probe: Probe | None = None

    def build(self, workload: Workload) -> OurModel:
        tail = SharedTail(Krylov.default_ratio)
        model = OurModel(workload, Krylov(tail=tail, probe=self.probe))
        without_tolerance(model)
        return model

    def training(self, model: Model, x: Tensor) -> Step:
        step, tail = self.step_of(model, x), tail_of(model)

        def with_a_new_number() -> None:
            tail.number = tail.next()
            step()

        return with_a_new_number

    def step_of(self, model: Model, x: Tensor) -> Step:
        """A step with the tail's present number of products."""
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, capturable=x.is_cuda)

        def step() -> None:
            optimizer.zero_grad()
            with pyro.validation_enabled(False):
                (-model.log_prob(x).mean()).backward()
            optimizer.step()

        return step


@dataclass(frozen=True)
class Graphed(Unread):
    """The same steps, recorded and replayed.

    Args:
        probe: see :class:`Unread`.
        record: records a step.
    """

    record: Record = record_on_cuda

    def training(self, model: Model, x: Tensor) -> Step:
        return GraphedStep(self.step_of(model, x), tail_of(model), self.record)


def tail_of(model: Model) -> SharedTail:
    """The tail that the blocks of a model share."""
    assert isinstance(model, OurModel)
    tail = model.blocks[0].logdet.tail
    assert isinstance(tail, SharedTail)
    return tail


class FixedProbe(Probe):
    """One tensor of signs for every block and step, which a recording may read.

    A frozen probe seeds a generator at each call, which cannot be recorded.
    """

    def __init__(self) -> None:
        self._signs: Tensor | None = None

    def sample(
        self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        if self._signs is None:
            self._signs = torch.randn(shape, dtype=like.dtype, device=like.device).sign()
        return self._signs


UNREAD = Unread("pyro-resflow, Krylov, nothing read")
GRAPHED = Graphed("pyro-resflow, Krylov, CUDA graphs")
