"""Training and scoring of a contender."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lightning import Trainer, seed_everything
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from examples.images.callbacks.progress import RunProgress
from examples.images.comparison.clock import Clock, Due, LearningCurve, Point, Schedule, score
from examples.images.comparison.contenders import Contender
from examples.images.data import ImageData
from examples.images.sources import stacked
from examples.images.task import DensityEstimation, HeldOut


class WholeTrainingSet(ImageData):
    """All training images, without validation images: the comparison selects no weights."""

    def setup(self, stage: str | None = None) -> None:
        """Load the images."""
        super().setup(stage)
        self.training_images, self.test_images = self.source.load()

    def scored_images(self, number: int | None = None) -> Tensor:
        """Return the first test images, by default all."""
        return stacked(self.test_images)[:number]


class SplitTrainingSet(ImageData):
    """Training images, some of which are held out, to choose settings without any test image."""

    def scored_images(self, number: int | None = None) -> Tensor:
        """Return the first held-out images, by default all."""
        return stacked(self.validation_images)[:number]


@dataclass(frozen=True)
class Protocol:
    """Settings of the training, with clipped gradients and a schedule of the learning rate.

    Attributes:
        budget: Seconds of training.
        steps: Maximum number of steps; -1 for no limit.
        warm_up: Steps in which the learning rate rises.
        fall: Fraction of the budget, at its end, in which the learning rate falls to zero.
        scored: Number of images to score during the training.
        tested: Number of images to score at the end; None for all.
        seed: Random seed.
    """

    budget: float = float("inf")
    steps: int = -1
    warm_up: int = 100
    fall: float = 0.3
    scored: int = 1024
    tested: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A contender after training.

    Attributes:
        task: The flow, with the weights of the last step.
        held_out: Bits/dim of the test images.
        steps: Number of steps.
        seconds: Seconds of training.
        curve: Bits/dim during the training.
    """

    task: DensityEstimation
    held_out: HeldOut
    steps: int
    seconds: float
    curve: list[Point]


def train(
    contender: Contender,
    data: WholeTrainingSet | SplitTrainingSet,
    protocol: Protocol,
    due: Callable[[], Due],
) -> Trained:
    """Train a contender and score its last weights.

    Args:
        contender: The contender.
        data: The images.
        protocol: Settings of the training.
        due: Builds the rule that decides when to score.
    """
    seed_everything(protocol.seed, verbose=False)
    data.setup()
    clock = Clock(protocol.budget)
    schedule = Schedule(clock, protocol.warm_up, protocol.fall)
    task = DensityEstimation(
        contender.build(data.event_shape, data.bins),
        data.bins,
        dequantizer=contender.dequantizer,
        optimizer=lambda _: contender.optimizer(task),
        lr_scheduler=partial(LambdaLR, lr_lambda=schedule),
    )
    curve = LearningCurve(clock, data.scored_images(protocol.scored), due())
    trainer = Trainer(
        max_epochs=-1,
        max_steps=protocol.steps,
        gradient_clip_val=1.0,
        callbacks=[curve, RunProgress()],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    task.to(trainer.strategy.root_device).eval()  # Lightning leaves it in training mode
    bits = score(task, data.scored_images(protocol.tested), data.evaluation_batch_size, seed=1)
    return Trained(task, HeldOut.of(bits), trainer.global_step, clock.seconds, curve.points)
