"""Time budget of a run, with its learning rate schedule and its scores on the way."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from pyro_resflow.logdet import Krylov
from pyro_resflow.transforms import temporary_logdet


@dataclass
class Clock:
    """A clock for the processor seconds of training, which can be stopped.

    Processor seconds hardly depend on what else the machine does, so that two runs can share it.
    Those of several threads add up.

    Args:
        budget: Seconds of training in all.
        seconds: Seconds counted so far.
    """

    budget: float = float("inf")
    seconds: float = 0.0
    _since: float | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the clock."""
        self._since = time.process_time()

    def stop(self) -> None:
        """Stop the clock."""
        self.seconds = self.elapsed()
        self._since = None

    def elapsed(self) -> float:
        """Return the seconds so far."""
        running = time.process_time() - self._since if self._since is not None else 0.0
        return self.seconds + running


@dataclass(frozen=True)
class Schedule:
    """A factor of the learning rate: linear warm-up, constant, linear decay to zero at the end.

    Args:
        clock: The clock of the run; the factor reaches zero at the end of its budget.
        warm_up: Steps of warm-up.
        fall: Fraction of the budget in which the factor decays; 0 keeps it constant.
    """

    clock: Clock
    warm_up: int = 100
    fall: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the factor at a step and the current time."""
        rise = min(1.0, (step + 1) / max(1, self.warm_up))
        if not self.fall:
            return rise
        left = max(0.0, 1 - self.clock.elapsed() / self.clock.budget)
        return rise * min(1.0, left / self.fall)


@dataclass(frozen=True)
class Point:
    """A point of a learning curve.

    Attributes:
        step: Optimizer steps taken.
        seconds: Seconds of training taken.
        bits_per_dim: Mean score over the images.
    """

    step: int
    seconds: float
    bits_per_dim: float


Due = Callable[[int, float], bool]
"""Decides, from the number of steps and the seconds, whether to score."""


class AtIntervals:
    """Scores at equal intervals of the budget.

    Args:
        budget: Seconds of the run.
        points: Number of intervals.
    """

    def __init__(self, budget: float, points: int) -> None:
        self.interval = budget / points
        self.next = self.interval

    def __call__(self, step: int, seconds: float) -> bool:
        """Return whether an interval has ended since the last call."""
        due = seconds >= self.next
        while seconds >= self.next:
            self.next += self.interval
        return due


@dataclass(frozen=True)
class AtSteps:
    """Scores after given numbers of steps.

    Args:
        steps: The numbers.
    """

    steps: tuple[int, ...]

    def __call__(self, step: int, seconds: float) -> bool:
        """Return whether the step is one of the numbers."""
        return step in self.steps


class LearningCurve(Callback):
    """Times a run, ends it at the end of its budget, and scores images on the way.

    It scores the current weights, with the same noise each time, and stops the clock meanwhile.

    Args:
        clock: The clock of the run.
        images: Integer images to score.
        due: Decides when to score.
        batch_size: Images in each batch of a score.
    """

    def __init__(self, clock: Clock, images: Tensor, due: Due, batch_size: int = 256) -> None:
        self.clock = clock
        self.images = images
        self.due = due
        self.batch_size = batch_size
        self.points: list[Point] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.clock.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Score if it is due; end the run if its time is over."""
        seconds = self.clock.elapsed()
        trainer.should_stop = seconds >= self.clock.budget
        if self.due(trainer.global_step, seconds):
            self.clock.stop()
            bits = score(pl_module, self.images, self.batch_size, seed=0).mean().item()
            self.points.append(Point(trainer.global_step, self.clock.seconds, bits))
            self.clock.start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.clock.stop()


@torch.no_grad()
def score(task: LightningModule, images: Tensor, batch_size: int, seed: int) -> Tensor:
    """Return the bits/dim of each integer image, with noise from a seed, in evaluation mode.

    The scores are unbiased, also for a flow whose training estimator is biased.
    """
    training = task.training
    task.eval()
    with isolate_rng(), temporary_logdet(task.flow, Krylov()):
        torch.manual_seed(seed)
        bits = [task.bits_per_dim(batch.to(task.device)) for batch in images.split(batch_size)]
    task.train(training)
    return torch.cat(bits)
