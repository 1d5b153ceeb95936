"""Densities of small tables: three measures against over-fitting, compared.

The data sets are those of scikit-learn with 144 to 457 training rows, the protocol is that of
`examples.tabular`. A large and a small residual flow are each trained without and with noise on
every batch. Both are scored on the test rows after the last step, and in the state with the best
validation score. The baseline is a multivariate normal with the training rows' mean and
covariance.

    python -m examples.small_tables
    python -m examples.small_tables --data '[wine]' --seeds 1 --training.steps 100
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TransformModule

from examples.atomic_files import write_whole
from examples.conditions import Conditions
from examples.parsing import command_line
from examples.tabular import DataName, Split, Training, fit, load, score
from pyro_resflow import residual_flow


@dataclass(frozen=True)
class Recipe:
    """A flow and the noise it is trained with.

    Attributes:
        flow: Builds the flow for a number of columns.
        noise: Standard deviation of the noise added to every batch.
    """

    flow: Callable[[int], TransformModule]
    noise: float


LARGE = partial(residual_flow, blocks=6, hidden_dims=[64, 64], fast="density")
SMALL = partial(residual_flow, blocks=2, hidden_dims=[32], fast="density")
NOISE = 0.3
"""Standard deviation of the noise; the columns have standard deviation 1."""

RECIPES = {
    "6 blocks of 64, 64": Recipe(LARGE, 0.0),
    "the same, noise 0.3": Recipe(LARGE, NOISE),
    "2 blocks of 32": Recipe(SMALL, 0.0),
    "the same, with noise 0.3": Recipe(SMALL, NOISE),
}
TRAINING = Training(steps=400, check_every=25)


@dataclass(frozen=True)
class Scores:
    """Mean nats of one recipe on one split.

    Attributes:
        train: Score of the training rows after the last step.
        last: Score of the test rows after the last step.
        best: Score of the test rows in the state with the best validation score.
    """

    train: float
    last: float
    best: float


def run(recipe: Recipe, data: DataName, seed: int, training: Training, name: str) -> Scores:
    """Train a recipe on a split of a data set, and score it."""
    split = load(data, seed)
    torch.manual_seed(seed)
    flow = recipe.flow(split.train.shape[1])
    best = fit(flow, split, replace(training, noise=recipe.noise), seed, f"{data}, {name}, {seed}")
    train, last = score(flow, split.train), score(flow, split.test)
    flow.load_state_dict(best)
    return Scores(train, last, score(flow, split.test))


def normal(split: Split) -> float:
    """Return the mean test nats of a normal with the training rows' mean and covariance."""
    fitted = dist.MultivariateNormal(split.train.mean(0), torch.cov(split.train.T))
    return float(fitted.log_prob(split.test).mean())


def mean(values: Sequence[float]) -> str:
    """Format the mean over the seeds with its standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if values[1:] else 0.0
    return f"{np.mean(values):.2f} ± {error:.2f}"


def main(
    data: Sequence[DataName] = ("wine", "diabetes", "breast_cancer"),
    seeds: int = 3,
    training: Training = TRAINING,
    folder: Path = Path("runs/small_tables"),
) -> None:
    """Train every recipe on every data set, and print a table of nats.

    Args:
        data: The data sets.
        seeds: Number of seeds; each has its own split, initial weights and batches.
        training: Training settings, except the noise.
        folder: Folder for the table and all figures.
    """
    torch.set_num_threads(1)  # the networks are too small to share
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["| data | model | training rows | test, last step | test, best |", "|" + " --- |" * 5]
    figures = {}
    for source in data:
        normals = [normal(load(source, seed)) for seed in range(seeds)]
        lines.append(f"| {source} | multivariate normal | | {mean(normals)} | |")
        for name, recipe in RECIPES.items():
            reached = [run(recipe, source, seed, training, name) for seed in range(seeds)]
            figures[f"{source}, {name}"] = [asdict(each) for each in reached]
            columns = [[asdict(r)[key] for r in reached] for key in ("train", "last", "best")]
            lines.append(f"| {source} | {name} | " + " | ".join(map(mean, columns)) + " |")
            print(lines[-1])
    print("\n".join(lines))
    here = Conditions.here("examples.small_tables")
    write_whole(folder / "table.md", "\n".join(lines) + "\n")
    write_whole(folder / "figures.json", json.dumps({**figures, **here.notes()}, indent=1))


if __name__ == "__main__":
    command_line(main)
