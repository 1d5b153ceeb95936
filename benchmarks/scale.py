"""Predict the cost of training the published Residual Flows: operations, memory, GPU-hours.

The program builds each flow on the meta device, where tensors have shapes but no values, and runs
one training step there. It counts the operations and the bytes of all live tensors, trains
nothing, and prints Markdown tables.

    python -m benchmarks.scale
    python -m benchmarks.scale --sizes '[CIFAR-10]' --utilisation 0.3 --peak_tflops 19.5
    python -m benchmarks.scale --check

The last command compares predictions for small flows with measurements on this machine.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from jsonargparse import ArgumentParser
from tqdm import tqdm

from benchmarks.published_sizes import EPOCHS, PUBLISHED
from benchmarks.scale_check import check
from benchmarks.step_cost import MEMORY_MODES, Cost, predict

CAPACITIES = (24e9, 40e9, 80e9)

Costs = dict[str, dict[str, Cost]]
"""Costs by the name of the size and the memory mode."""


def gpu_hours(operations: float, utilisation: float, peak_tflops: float) -> float:
    """Hours on a device that reaches this share of its peak."""
    return operations / (utilisation * peak_tflops * 1e12) / 3600


def figure(number: float) -> str:
    """A positive number with three significant digits, without exponent."""
    digits = 2 - math.floor(math.log10(number))
    return f"{round(number, digits):,.{max(0, digits)}f}"


def table(columns: dict[str, list[str]]) -> None:
    """Print a Markdown table from its columns by their headings."""
    print(f"\n| {' | '.join(columns)} |")
    print(f"| --- |{' ---: |' * (len(columns) - 1)}")
    for row in zip(*columns.values(), strict=True):
        print(f"| {' | '.join(row)} |")


def operations_table(costs: Costs, utilisation: float, peak_tflops: float) -> None:
    """Print parameters, operations of a training step and GPU-hours."""
    sizes = [PUBLISHED[name] for name in costs]
    recompute, keep = ([by_mode[mode] for by_mode in costs.values()] for mode in MEMORY_MODES)
    per_image = [cost.flops / size.batch for cost, size in zip(recompute, sizes, strict=True)]
    hours = [
        gpu_hours(operations * size.training_images, utilisation, peak_tflops)
        for operations, size in zip(per_image, sizes, strict=True)
    ]
    table(
        {
            "flow": list(costs),
            "parameters": [f"{cost.parameters / 1e6:.1f} M" for cost in recompute],
            "authors' code*": [f"{size.authors_parameters / 1e6:.1f} M" for size in sizes],
            "batch": [str(size.batch) for size in sizes],
            "GFLOP an image, recompute": [figure(operations / 1e9) for operations in per_image],
            "keep": [
                figure(cost.flops / size.batch / 1e9)
                for cost, size in zip(keep, sizes, strict=True)
            ],
            "norms' share": [f"{cost.norm_flops / cost.flops:.1%}" for cost in recompute],
            "GPU-hours an epoch": [figure(each) for each in hours],
            f"{EPOCHS} epochs": [figure(EPOCHS * each) for each in hours],
        }
    )


def memory_table(costs: Costs) -> None:
    """Print state, memory per image and the largest batches."""
    first = [by_mode[MEMORY_MODES[0]] for by_mode in costs.values()]
    columns = {
        "flow": list(costs),
        "state": [f"{cost.state / 1e9:.2f} GB" for cost in first],
        "fixed": [f"{cost.peak.fixed / 1e9:.2f} GB" for cost in first],
    }
    for mode in MEMORY_MODES:
        found = [by_mode[mode] for by_mode in costs.values()]
        columns[f"{mode}: an image"] = [f"{figure(c.peak.per_image / 1e6)} MB" for c in found]
        for capacity in CAPACITIES:
            columns[f"{mode}: batch in {capacity / 1e9:.0f} GB"] = [
                str(cost.largest_batch(capacity)) for cost in found
            ]
    table(columns)


def predict_sizes(
    sizes: Sequence[str] = tuple(PUBLISHED),
    utilisation: float = 0.2,
    peak_tflops: float = 156.0,
) -> None:
    """Print the predicted cost of training the published sizes.

    Args:
        sizes: names of the sizes.
        utilisation: share of the device's peak that training is assumed to reach.
        peak_tflops: the device's peak in 10^12 operations per second; default: an A100 with TF32.
    """
    costs: Costs = {}
    for name in tqdm(sizes, unit="size"):
        costs[name] = {mode: predict(PUBLISHED[name], mode) for mode in MEMORY_MODES}
    print(
        f"torch {torch.__version__}, float32; Krylov(). GPU-hours: recompute mode, "
        f"{utilisation:.0%} of {peak_tflops:g} TFLOP/s."
    )
    operations_table(costs, utilisation, peak_tflops)
    print("\n*: derived from the authors' code, not a published figure.")
    memory_table(costs)


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status: 1 if a prediction is wrong."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with measurements instead")
    parser.add_function_arguments(predict_sizes, as_group=False)
    chosen = parser.parse_args(arguments).as_dict()
    if chosen.pop("check"):
        return 0 if check() else 1
    predict_sizes(**chosen)
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
