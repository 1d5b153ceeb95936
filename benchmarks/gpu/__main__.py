"""Run the benchmark for one GPU.

python -m benchmarks.gpu
python -m benchmarks.gpu --sections training vectors
python -m benchmarks.gpu --device cpu --quick
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy
import pyro
import torch

from benchmarks.speed.machine import machine

from .plan import BUDGET, FULL, QUICK
from .sections import SECTIONS, Budget


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure training steps on one GPU, and run the tests that need one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", type=torch.device, help="cuda or cpu")
    parser.add_argument("--quick", action="store_true", help="use tiny sizes, for a quick test")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS], help="what to run"
    )
    parser.add_argument("--seconds", default=BUDGET, type=float, help="the time of all rows")
    parser.add_argument("--seed", default=0, type=int, help="random seed")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    chosen = arguments(given)
    budget = Budget(chosen.seconds)
    facts = machine(chosen.device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), "\n", flush=True)
    for name in chosen.sections:
        pyro.set_rng_seed(chosen.seed)
        numpy.random.seed(chosen.seed)  # normflows draws its numbers of terms from numpy
        SECTIONS[name](QUICK if chosen.quick else FULL, chosen.device, budget)


if __name__ == "__main__":
    main()
