"""A callback that records the steps of a run, and interrupts it."""

import hashlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from examples.images.callbacks.averaging import WeightAverage
from pyro_resflow.transforms import UniformDequantization


class CrashError(Exception):
    """An exception that ends a run at once."""


class Step(NamedTuple):
    """The record of a step: tensors and numbers by their bits."""

    step: str
    loss: str
    weights: str
    buffers: str
    optimizer: str
    average: str
    next_draw: str


class Recorder(Callback):
    """Writes a line for every step to a file of each process, and may end the run.

    Args:
        path: The file; the number of the process is appended.
        at: Step at whose end something happens.
        event: What happens: an exception, or a signal that the process sends to itself.
    """

    def __init__(
        self,
        path: str,
        at: int = 0,
        event: Literal["crash", "SIGKILL", "SIGINT", "SIGTERM"] = "crash",
    ) -> None:
        self.path = path
        self.at = at
        self.event = event

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        average = next(c for c in trainer.callbacks if isinstance(c, WeightAverage))
        states = trainer.optimizers[0].state.values()
        with torch.random.fork_rng(devices=[]):
            draw = torch.rand(4)
        line = Step(
            str(trainer.global_step),
            float(outputs["loss"]).hex(),
            bits(pl_module.parameters()),
            bits(pl_module.buffers()),
            bits(value for state in states for value in state.values()),
            bits(average._average_model.parameters()),
            bits([draw]),
        )
        with Path(f"{self.path}.{trainer.global_rank}").open("a") as file:
            file.write(" ".join(line) + "\n")
        if trainer.global_step == self.at:
            self._happen()

    def _happen(self) -> None:
        if self.event == "crash":
            raise CrashError
        os.kill(os.getpid(), getattr(signal, self.event))


def bits(tensors: Iterable[Tensor]) -> str:
    """A hash: equal for equal bits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def recorded(folder: Path, rank: int = 0) -> dict[int, Step]:
    """What a run in a folder has written down, by step."""
    lines = (folder / f"record.{rank}").read_text().splitlines()
    steps = [Step(*line.split()) for line in lines]
    return {int(step.step): step for step in steps}


class NoiseOfImages(UniformDequantization):
    """Dequantization whose noise is a function of the image: the same whoever draws it."""

    def noise(self, x: Tensor) -> dist.TorchDistribution:
        """A fixed u in [0, 1) for each image."""
        pixels = torch.arange(1, x[0].numel() + 1, device=x.device).view(x.shape[1:])
        mixed = (pixels * (x + 1)).to(torch.get_default_dtype()).sum((1, 2, 3), keepdim=True)
        return dist.Delta((0.37 * pixels + 0.61 * mixed).frac()).to_event(3)


class FixedNoise(Callback):
    """Makes the loss a function of the weights and the images, where log-determinants are."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.dequantizer = NoiseOfImages(pl_module.bins)
