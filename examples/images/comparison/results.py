"""Results of the compared models: one file for each, with a table and pictures of all."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cycler import cycler
from matplotlib import rcParams
from matplotlib.figure import Figure
from torch import Tensor

from examples.atomic_files import replacing, write_whole
from examples.conditions import Conditions
from examples.images import figures
from examples.images.comparison.clock import Point
from examples.images.reading import reading


@dataclass(frozen=True)
class Result:
    """The result of one contender.

    Attributes:
        contender: Its name on the command line.
        title: Its name in tables and pictures.
        data: The source of the images.
        budget: Processor seconds of training; None if a number of steps ended the training.
        parameters: Number of parameters.
        steps: Number of optimizer steps.
        seconds: Processor seconds of training, without scoring.
        bits_per_dim: Mean over the test images.
        standard_error: Standard error of the mean over the images.
        test_images: Number of test images.
        curve: Bits/dim during the training.
        conditions: The command, commit and machine.
    """

    contender: str
    title: str
    data: str
    budget: float | None
    parameters: int
    steps: int
    seconds: float
    bits_per_dim: float
    standard_error: float
    test_images: int
    curve: list[Point]
    conditions: Conditions

    def save(self, folder: Path) -> None:
        """Write the result to a folder, in a file named after the contender."""
        content = json.dumps(dataclasses.asdict(self), indent=2)
        write_whole(self.path(folder, self.contender), content + "\n")

    @staticmethod
    def path(folder: Path, contender: str) -> Path:
        """Return the file of a contender's result."""
        return folder / f"{contender}.json"

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read a result.

        Raises:
            SetupError: If the file does not hold a result.
        """
        with reading("folder", path):
            fields = json.loads(path.read_text())
            curve = [Point(**point) for point in fields.pop("curve")]
            conditions = Conditions(**fields.pop("conditions"))
            result = cls(curve=curve, conditions=conditions, **fields)
            for numbers in (result, *curve):
                if not math.isfinite(numbers.seconds) or not math.isfinite(numbers.bits_per_dim):
                    raise ValueError("seconds or bits/dim are not finite")
            return result


def save_samples(folder: Path, contender: str, samples: Tensor) -> None:
    """Save integer samples of a contender, for the picture of all, in bytes if they fit."""
    kind = torch.uint8 if samples.max() < 2**8 else torch.int32
    with replacing(folder / f"{contender}.samples.npy") as file:
        np.save(file, samples.to(kind).numpy(force=True))


def load_all(folder: Path) -> list[Result]:
    """Read the results in a folder, fewest bits/dim first."""
    results = [Result.load(path) for path in folder.glob("*.json")]
    return sorted(results, key=lambda result: result.bits_per_dim)


def table(results: list[Result]) -> str:
    """Return a Markdown table of results."""
    lines = [
        "| model | parameters | steps | seconds | ms per step | bits/dim |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        pace = 1000 * result.seconds / max(1, result.steps)
        lines.append(
            f"| {result.title} | {result.parameters:,} | {result.steps:,} | {result.seconds:.0f} "
            f"| {pace:.0f} | {result.bits_per_dim:.3f} ± {result.standard_error:.3f} |"
        )
    return "\n".join(lines) + "\n"


def learning_curves(results: list[Result]) -> Figure:
    """Show bits/dim against the steps and against the processor seconds of training."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    colors = rcParams["axes.prop_cycle"]
    for axis, label in zip(axes, ("steps", "processor seconds of training"), strict=True):
        axis.set_prop_cycle(cycler(linestyle=["-", "--", ":"]) * colors)  # enough for all models
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    for result in results:
        bits = [point.bits_per_dim for point in result.curve]
        axes[0].plot([point.step for point in result.curve], bits)
        axes[1].plot([point.seconds for point in result.curve], bits, label=result.title)
    axes[0].set(ylabel="bits/dim")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure


def samples_of_all(folder: Path, results: list[Result], bins: int) -> Figure:
    """Show samples, one row for each contender."""
    rows = {}
    for result in results:
        path = folder / f"{result.contender}.samples.npy"
        with reading("folder", path):
            samples = np.load(path, allow_pickle=False)
        title = f"{result.title}: {result.bits_per_dim:.3f} bits/dim"
        rows[title] = torch.from_numpy(samples) / (bins - 1)
    return figures.rows_of(rows, columns=max(len(samples) for samples in rows.values()))


def write_summary(folder: Path, bins: int) -> str:
    """Write the table and the pictures of all results in a folder, and return the table."""
    results = load_all(folder)
    text = table(results)
    write_whole(folder / "table.md", text)
    learning_curves(results).savefig(folder / "learning_curves.png", dpi=120)
    samples_of_all(folder, results, bins).savefig(folder / "samples.png", dpi=120)
    return text
