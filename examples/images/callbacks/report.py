"""The report of a run: the tested weights, pictures, and a page that shows them."""

import base64
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from lightning import Callback, LightningModule, Trainer
from torchvision.utils import save_image

from examples.conditions import Conditions, command
from examples.images import figures, weights
from examples.images.callbacks.report_facts import facts
from examples.images.data import Batch, images_of, labels_of
from examples.images.task import DensityEstimation
from pyro_resflow import checkpoints


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        file: Its name in the folder of the run.
        caption: Its description.
    """

    file: str
    caption: str


PICTURES = {
    "Samples": Picture("samples.png", ""),  # the task has the description
    "Temperatures": Picture(
        "temperatures.png",
        "One noise at several scales: 0 gives the image of zero noise, 1 samples of the flow.",
    ),
    "Interpolations": Picture(
        "interpolations.png",
        "Test images at both ends, and the images along the arc between their noise vectors.",
    ),
    "Reconstructions": Picture(
        "reconstructions.png", "Test images, encoded and decoded again: the flow is invertible."
    ),
    "Likelihoods": Picture(
        "likelihoods.png", "The most and the least likely of the first test images."
    ),
    "Learning curve": Picture(
        "learning_curve.png",
        "Training: mean over each epoch, current weights. Validation: averaged weights, if the "
        "run averages them.",
    ),
}


class Report(Callback):
    """Writes the report to the run's folder after a test.

    Args:
        samples: Number of images to draw from the flow.
        reconstructions: Number of test images to reconstruct, and of images in each row of the
            other pictures; at least 2, since interpolation needs two images.
    """

    def __init__(self, samples: int = 64, reconstructions: int = 10) -> None:
        if reconstructions < 2:
            raise ValueError(f"reconstructions: expected at least 2, got {reconstructions}")
        self.samples = samples
        self.reconstructions = reconstructions
        self.conditions: Conditions | None = None
        self.seconds = 0.0
        self._since: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the conditions of the run; a resumed run keeps those of its start."""
        if self.conditions is None:
            assert isinstance(pl_module, DensityEstimation)
            self.conditions = Conditions.here(pl_module.program)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the duration of the training, with that before a resumption."""
        self.seconds, self._since = self._trained(), None

    def _trained(self) -> float:
        return self.seconds + (time.monotonic() - self._since if self._since is not None else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the conditions and the duration, for the checkpoint."""
        run = asdict(self.conditions) if self.conditions else {}
        return {**run, "seconds": self._trained()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the conditions and the duration, which old checkpoints may lack."""
        run = dict(state_dict)
        self.seconds = run.pop("seconds", 0.0)
        self.conditions = Conditions(**run) if run else None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the result and write the report, in the first process only."""
        assert isinstance(pl_module, DensityEstimation)
        # A broadcast: all processes must ask for the folder.
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero:
            print(pl_module.held_out)
            conditions = self.conditions or Conditions.here(pl_module.program)
            save_weights(folder, trainer, pl_module, conditions)
            with trainer.precision_plugin.tensor_init_context():
                self.draw(folder, trainer, pl_module)
            table = facts(trainer, pl_module, conditions, self.seconds)
            print(f"report: {write_page(folder, pl_module, table)}")

    @torch.no_grad()
    def draw(self, folder: Path, trainer: Trainer, task: DensityEstimation) -> None:
        """Write the pictures."""
        assert task.held_out is not None
        samples, columns = task.samples(self.samples)
        picture = figures.grid(samples / (task.bins - 1), columns)
        save_image(picture, folder / PICTURES["Samples"].file)
        loader, number = trainer.datamodule.test_dataloader(), self.reconstructions
        batch = task.transfer_batch_to_device(first_batch(loader, number), task.device, 0)
        images, labels = images_of(batch), labels_of(batch)
        shown, shown_labels = images[:number], None if labels is None else labels[:number]
        flow = task.flow_given(shown_labels)
        pairs = len(shown) // 2
        ends = ((shown + 0.5) / task.bins)[: 2 * pairs].chunk(2)
        of_pairs = task.flow_given(None if labels is None else labels[:pairs])
        drawn = {
            "Temperatures": figures.temperatures(flow, number=len(shown)),
            "Interpolations": figures.interpolation(of_pairs, *ends),
            "Reconstructions": figures.reconstructions(flow, shown, task.bins),
            "Likelihoods": figures.ranking(task.distribution(labels=labels), images, number),
            "Learning curve": figures.learning_curve(folder, task.held_out),
        }
        for title, figure in drawn.items():
            figure.savefig(folder / PICTURES[title].file, dpi=120)


def first_batch(batches: Iterable[Batch], number: int) -> Batch:
    """Concatenate as few batches as hold a number of images, or all."""
    taken: list[Batch] = []
    for batch in batches:
        taken.append(batch)
        if sum(len(images_of(each)) for each in taken) >= number:
            break
    images = torch.cat([images_of(each) for each in taken])
    labels = [each for each in map(labels_of, taken) if each is not None]
    return (images, torch.cat(labels)) if labels else images


def save_weights(
    folder: Path, trainer: Trainer, task: DensityEstimation, conditions: Conditions
) -> None:
    """Save the tested modules, with notes on the data, the result and the run.

    A user's flow that cannot be rebuilt from a file is not saved, and a message says why.
    """
    notes = {
        "data": str(trainer.datamodule.source),
        "bins": str(task.bins),
        "result": str(task.held_out),
        **conditions.notes(),
    }
    try:
        weights.save(folder, task, notes)
    except checkpoints.NotRebuildableError as error:
        print(f"the weights are not saved: {error}")


def write_page(folder: Path, task: DensityEstimation, table: Mapping[str, str]) -> Path:
    """Write `report.html`, with its pictures embedded.

    Args:
        folder: The folder of the run.
        task: The tested task.
        table: The rows of the table, by title.
    """
    environment = Environment(
        loader=PackageLoader("examples.images.callbacks", "."),
        autoescape=select_autoescape(default=True),
    )
    settings = folder / "config.yaml"
    page = environment.get_template("report.html.jinja").render(
        result=task.held_out,
        facts=table,
        command=command(task.program),
        settings=settings.read_text() if settings.exists() else "",
        pictures=[
            (title, picture.caption or task.drawn, embed(folder / picture.file))
            for title, picture in PICTURES.items()
        ],
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def embed(picture: Path) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
