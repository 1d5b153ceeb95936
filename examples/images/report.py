"""The report of a run: pictures, and one page that shows them together."""

import base64
import shlex
import sys
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from lightning import Callback, LightningModule, Trainer

from examples.images import figures
from examples.images.task import DensityEstimation


class Report(Callback):
    """Writes the report into the folder of the run when a test has ended.

    Args:
        samples: Number of images to draw from the flow.
        reconstructions: Number of test images to send through the flow and back.
    """

    def __init__(self, samples: int = 64, reconstructions: int = 10) -> None:
        self.samples = samples
        self.reconstructions = reconstructions

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the result and write the report, in the first process only."""
        assert isinstance(pl_module, DensityEstimation)
        # All processes must ask for the folder: it is broadcast.
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero:
            print(pl_module.held_out)
            self.draw(folder, trainer, pl_module)
            print(f"report: {write_page(folder, pl_module)}")

    @torch.no_grad()
    def draw(self, folder: Path, trainer: Trainer, task: DensityEstimation) -> None:
        """Write the pictures."""
        assert task.held_out is not None
        samples = task.distribution().sample((self.samples,))
        figures.save_samples(folder / "samples.png", samples, task.bins)
        images = next(iter(trainer.datamodule.test_dataloader()))[: self.reconstructions]
        figures.save_reconstructions(
            folder / "reconstructions.png", task.flow, images.to(task.device), task.bins
        )
        figures.save_learning_curve(folder / "learning_curve.png", folder, task.held_out)


def write_page(folder: Path, task: DensityEstimation) -> Path:
    """Write `report.html`, which holds its pictures in itself."""
    environment = Environment(
        loader=PackageLoader("examples.images", "."), autoescape=select_autoescape(default=True)
    )
    settings = folder / "config.yaml"
    page = environment.get_template("report.html.jinja").render(
        result=task.held_out,
        parameters=sum(p.numel() for p in task.parameters()),
        command=shlex.join(["python", "-m", "examples.images", *sys.argv[1:]]),
        settings=settings.read_text() if settings.exists() else "",
        pictures=[
            ("Samples", "Drawn from the flow.", embed(folder / "samples.png")),
            (
                "Reconstructions",
                "Test images, encoded and decoded again: the flow is invertible.",
                embed(folder / "reconstructions.png"),
            ),
            (
                "Learning curve",
                "Training: mean over an epoch, current weights. Validation: averaged weights, "
                "where the run averages them.",
                embed(folder / "learning_curve.png"),
            ),
        ],
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def embed(picture: Path) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
