"""Densities of small tables: residual flows and zuko's flows under one protocol.

The data sets are those of scikit-learn. The models are a Residual Flow, an i-DenseNet, and from
zuko a neural spline flow, a masked autoregressive flow and a continuous flow, each as a Pyro
transform.

The protocol, for each seed: rows are shuffled and split 80 / 10 / 10. Columns with fewer than ten
values are dropped, and the rest are standardised by the training rows. Since these are rounded
too, normal noise of a tenth of a standard deviation is added to all rows, which keeps every
density finite. Adam maximises the likelihood in batches. The validation rows are scored at regular
intervals, and the state with the best validation score is scored on the test rows, with the exact
log-determinant. Each result is kept in a file: a stopped run continues with the next result, as
long as the commit is the same.

    python -m examples.tabular
    python -m examples.tabular --data '[wine]' --seeds 1 --training.steps 200
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TransformModule
from sklearn import datasets
from torch import Tensor
from tqdm import tqdm

from examples.atomic_files import write_whole
from examples.conditions import commit
from examples.parsing import command_line
from pyro_resflow import residual_flow
from pyro_resflow.interop.zuko import from_zuko
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import LipschitzDenseNet
from pyro_resflow.transforms import ActNorm, Compose, Inverse, Residual, temporary_logdet

import zuko  # isort: skip  # after from_zuko, which keeps Pyro's validation of arguments on

DataName = Literal["wine", "diabetes", "breast_cancer", "digits"]
ModelName = Literal["residual flow", "i-DenseNet", "NSF", "MAF", "CNF"]

DATA: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
    "breast_cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}


def dense_flow(features: int, blocks: int) -> TransformModule:
    """Build an i-DenseNet: residual blocks of densely connected layers, each before an ActNorm."""
    parts: list[TransformModule] = [ActNorm(features)]
    for _ in range(blocks):
        parts += [Residual(LipschitzDenseNet(features, depth=2, growth=64)), ActNorm(features)]
    return Inverse(Compose(parts))


MODELS: dict[str, Callable[[int], TransformModule]] = {
    "residual flow": lambda features: residual_flow(features, 6, [64, 64], fast="density"),
    "i-DenseNet": lambda features: dense_flow(features, blocks=6),
    "NSF": lambda features: from_zuko(zuko.flows.NSF(features, transforms=3)),
    "MAF": lambda features: from_zuko(zuko.flows.MAF(features, transforms=3)),
    "CNF": lambda features: from_zuko(zuko.flows.CNF(features, exact=False)),
}


@dataclass(frozen=True)
class Split:
    """Training, validation and test rows, each of shape ``(N, D)``."""

    train: Tensor
    validation: Tensor
    test: Tensor


def load(name: str, seed: int, noise: float = 0.1) -> Split:
    """Load a data set, split and standardise it, and add noise."""
    table, _ = DATA[name](return_X_y=True)
    table = table[:, [len(np.unique(column)) >= 10 for column in table.T]]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor(table, dtype=torch.get_default_dtype())
    rows = rows[torch.randperm(len(rows), generator=generator)]
    tenth = len(rows) // 10
    train = rows[2 * tenth :]
    rows = (rows - train.mean(0)) / train.std(0)
    rows = rows + noise * torch.randn(rows.shape, generator=generator)
    return Split(rows[2 * tenth :], rows[:tenth], rows[tenth : 2 * tenth])


def density(flow: TransformModule, features: int) -> dist.TransformedDistribution:
    """Return the density of normal noise pushed through a flow."""
    base = dist.Normal(torch.zeros(features), torch.ones(features)).to_event(1)
    return dist.TransformedDistribution(base, [flow])


@contextmanager
def exact_log_determinants(flow: TransformModule) -> Iterator[None]:
    """Use exact log-determinants in residual blocks and continuous flows within the block."""
    ode = [m for m in flow.modules() if isinstance(m, zuko.flows.FFJTransform)]
    for part in ode:
        part.exact = True
    try:
        with temporary_logdet(flow, Exact()):
            yield
    finally:
        for part in ode:
            part.exact = False


@torch.no_grad()
def score(flow: TransformModule, rows: Tensor) -> float:
    """Return the mean log density of rows, in nats, with exact log-determinants."""
    with exact_log_determinants(flow):
        return float(density(flow, rows.shape[1]).log_prob(rows).mean())


@dataclass(frozen=True)
class Training:
    """Settings of the training.

    Attributes:
        steps: Training steps.
        batch_size: Rows in a batch, drawn with replacement.
        learning_rate: Initial learning rate of Adam; it falls to zero along a cosine.
        check_every: Steps between two scores of the validation rows.
        noise: Standard deviation of the normal noise added to every batch.
    """

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 3e-3
    check_every: int = 50
    noise: float = 0.0


def fit(
    flow: TransformModule, split: Split, training: Training, seed: int, description: str
) -> dict[str, Tensor]:
    """Train to the last step, and return the state with the best validation score."""
    generator = torch.Generator().manual_seed(seed)
    flow_density = density(flow, split.train.shape[1])
    with torch.no_grad():
        flow_density.log_prob(split.train[: training.batch_size])  # initialises the ActNorms
    optimizer = torch.optim.Adam(flow.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    best, state = score(flow, split.validation), copy.deepcopy(flow.state_dict())
    for step in tqdm(range(1, training.steps + 1), desc=description, leave=False):
        chosen = torch.randint(len(split.train), (training.batch_size,), generator=generator)
        rows = split.train[chosen]
        if training.noise:
            rows = rows + training.noise * torch.randn(rows.shape, generator=generator)
        optimizer.zero_grad()
        loss = -flow_density.log_prob(rows).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step % training.check_every == 0 or step == training.steps:
            reached = score(flow, split.validation)
            if reached > best:
                best, state = reached, copy.deepcopy(flow.state_dict())
    return state


@dataclass(frozen=True)
class Result:
    """Results of one model on one data set, over the seeds.

    Attributes:
        nats: Mean test log density of each seed.
        seconds: Processor time of training, of each seed.
        parameters: Number of parameters.
    """

    nats: list[float]
    seconds: list[float]
    parameters: int

    @property
    def error(self) -> float:
        """Standard error of the mean over the seeds."""
        return float(np.std(self.nats, ddof=1) / len(self.nats) ** 0.5) if self.nats[1:] else 0.0

    def cell(self) -> str:
        """Format the cell of the table."""
        spread = f" ± {self.error:.2f}" if self.nats[1:] else ""
        return f"{np.mean(self.nats):.2f}{spread} ({np.mean(self.seconds):.0f} s)"


def run(data: str, model: str, seeds: int, training: Training) -> Result:
    """Train and test a model on a data set with each seed."""
    nats, seconds, parameters = [], [], 0
    for seed in range(seeds):
        split = load(data, seed)
        torch.manual_seed(seed)
        flow = MODELS[model](split.train.shape[1])
        parameters = sum(p.numel() for p in flow.parameters())
        start = time.process_time()
        state = fit(flow, split, training, seed, f"{data}, {model}, seed {seed}")
        seconds.append(time.process_time() - start)
        flow.load_state_dict(state)
        nats.append(score(flow, split.test))
    return Result(nats, seconds, parameters)


def run_once(data: str, model: str, seeds: int, training: Training, folder: Path) -> Result:
    """Return the result that the folder holds for this commit and these settings, or a new one."""
    settings = {"seeds": seeds, **asdict(training), "commit": commit()}
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    path = folder / f"{data}, {model}, {digest}.json"
    if path.exists():
        print(f"read {path}")
        try:
            return Result(**json.loads(path.read_text())["result"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SystemExit(
                f"error: {path} does not hold a result ({error}); delete it to run again"
            ) from error
    result = run(data, model, seeds, training)
    write_whole(path, json.dumps({"settings": settings, "result": asdict(result)}) + "\n")
    return result


def table(results: dict[str, dict[str, Result]]) -> str:
    """Format a Markdown table: a row for each model, a column for each data set."""
    models = list(next(iter(results.values())))
    lines = [f"| model | {' | '.join(results)} |", "| --- |" + " --- |" * len(results)]
    for model in models:
        cells = [results[data][model].cell() for data in results]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Result]], path: Path) -> None:
    """Draw test nats with their standard errors, one axis for each data set."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(3.2 * len(results), 3), squeeze=False, layout="constrained"
    )
    for axis, (name, of_data) in zip(axes.flat, results.items(), strict=True):
        for i, result in enumerate(of_data.values()):
            axis.errorbar(i, np.mean(result.nats), result.error, fmt="o", capsize=4)
            axis.plot([i] * len(result.nats), result.nats, "_", color="grey", alpha=0.6)
        axis.set_xticks(range(len(of_data)), list(of_data), rotation=45, ha="right")
        axis.set_title(name.replace("_", " "))
    axes[0, 0].set_ylabel("test nats")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(
    data: Sequence[DataName] = ("wine", "diabetes", "breast_cancer", "digits"),
    models: Sequence[ModelName] = ("residual flow", "i-DenseNet", "NSF", "MAF", "CNF"),
    seeds: int = 5,
    training: Training = Training(),
    folder: Path = Path("runs/tabular"),
) -> None:
    """Train every model on every data set, print a table of test nats and draw it.

    Args:
        data: The data sets.
        models: The models.
        seeds: Number of seeds; each has its own split, initial weights and batches.
        training: Settings of the training.
        folder: Folder for the results, the table and the figure.
    """
    torch.set_num_threads(1)  # the networks are too small to share
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Result]] = {}
    for name in data:
        results[name] = {}
        for model in models:
            results[name][model] = run_once(name, model, seeds, training, folder)
            result = results[name][model]
            print(f"{name}, {model}: {result.cell()}, {result.parameters} parameters")
    (folder / "table.md").write_text(table(results) + "\n")
    print(table(results))
    draw(results, folder / "tabular.png")
    print(f"wrote {folder / 'table.md'} and {folder / 'tabular.png'}")


if __name__ == "__main__":
    command_line(main)
