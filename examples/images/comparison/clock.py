"""When a run is over, how its learning rate falls, and when it is scored on the way."""

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
    """Seconds of training; what happens while it stands does not count.

    Args:
        budget: Seconds after which training is over.
    """

    budget: float = float("inf")
    seconds: float = 0.0
    _since: float | None = field(default=None, repr=False)

    def start(self) -> None:
        """Go."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Stand, until started again."""
        self.seconds = self.elapsed()
        self._since = None

    def elapsed(self) -> float:
        """Return the seconds so far."""
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        return self.seconds + running


@dataclass(frozen=True)
class Schedule:
    """A factor of the learning rate: linear warm-up, constant, linear fall to zero at the end.

    Args:
        clock: Of the run; its budget is where the factor ends.
        warm_up: Steps of warm-up.
        fall: Part of the budget in which the factor falls; 0 keeps it until the end.
    """

    clock: Clock
    warm_up: int = 100
    fall: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the factor at a step, now."""
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
        bits_per_dim: Mean over the images that are scored on the way.
    """

    step: int
    seconds: float
    bits_per_dim: float


Due = Callable[[int, float], bool]
"""Whether to score after so many steps and seconds."""


class EverySoOften:
    """Due whenever another part of the budget is used up.

    Args:
        budget: Seconds of the run.
        points: Number of parts.
    """

    def __init__(self, budget: float, points: int) -> None:
        self.interval = budget / points
        self.next = self.interval

    def __call__(self, step: int, seconds: float) -> bool:
        """Return whether a part is used up that was not at the last call."""
        due = seconds >= self.next
        while seconds >= self.next:
            self.next += self.interval
        return due


@dataclass(frozen=True)
class AtSteps:
    """Due after certain numbers of steps.

    Args:
        steps: The numbers.
    """

    steps: tuple[int, ...]

    def __call__(self, step: int, seconds: float) -> bool:
        """Return whether this is one of the numbers."""
        return step in self.steps


class LearningCurve(Callback):
    """Times a run, ends it when its budget is used up, and scores images on the way.

    Scores are of the current weights, with the same noise each time. Scoring does not count as
    training.

    Args:
        clock: Of the run.
        images: Integer images that are scored.
        due: When.
        batch_size: Images scored at once.
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
        """Score if it is due; stop if time is up."""
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
    """Return the bits/dim of each integer image, with noise of a seed, in evaluation mode.

    Without bias, whatever the flow is trained by.
    """
    training = task.training
    task.eval()
    with isolate_rng(), temporary_logdet(task.flow, Krylov()):
        torch.manual_seed(seed)
        bits = [task.bits_per_dim(batch.to(task.device)) for batch in images.split(batch_size)]
    task.train(training)
    return torch.cat(bits)
