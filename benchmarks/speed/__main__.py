"""Run the speed benchmark: print its tables, write JSON and a chart to runs/bench/.

python -m benchmarks.speed
python -m benchmarks.speed --threads 2 --rows training memory
python -m benchmarks.speed --quick
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy
import pyro
import torch

from .chart import draw
from .findings import Findings
from .groups import GROUPS
from .groups.vectors import STEP_OF_VECTORS
from .machine import machine
from .plan import FULL, QUICK, Plan
from .report import markdown, write_json


def measure(plan: Plan, groups: Sequence[str], seed: int) -> Findings:
    """Measure some groups, each with its own random numbers."""
    found = Findings()
    for name in groups:
        start = time.perf_counter()
        pyro.set_rng_seed(seed)
        numpy.random.seed(seed)  # normflows draws its numbers of terms from numpy
        found.add(GROUPS[name](plan))
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return found


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Measure this package against normflows and torchflows.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="use tiny sizes, for a quick test")
    parser.add_argument(
        "--rows", nargs="+", choices=GROUPS, default=[*GROUPS], help="the groups to run"
    )
    parser.add_argument(
        "--threads", type=int, help="threads for every library; by default torch's"
    )
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu or cuda")
    parser.add_argument("--repeats", type=int, help="timed runs; by default 7, or 2 with --quick")
    parser.add_argument("--seed", default=0, type=int, help="random seed")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="root of a checkout of another commit; the rows `vectors` time its flows too",
    )
    parser.add_argument(
        "--folder", default=Path("runs/bench"), type=Path, help="folder for the results"
    )
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> Findings:
    """Measure, print and write."""
    chosen = arguments(given)
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    warnings.filterwarnings("ignore", module="torchflows")
    plan = replace(QUICK if chosen.quick else FULL, device=chosen.device, against=chosen.against)
    if chosen.repeats is not None:
        plan = replace(plan, repeats=chosen.repeats)
    facts = machine(plan.device)
    found = measure(plan, chosen.rows, chosen.seed)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    page = markdown(facts, found)
    print(page)
    (chosen.folder / "bench.md").write_text(page + "\n")
    write_json(chosen.folder / "bench.json", facts, found)
    title = ", ".join(facts[key] for key in ("processor", "commit")) + (
        f", {facts['threads']} threads, torch {facts['torch']}"
    )
    draw(found.measurements, title, chosen.folder / "bench.png")
    draw(found.measurements, title, chosen.folder / "vectors.png", [STEP_OF_VECTORS])
    return found


if __name__ == "__main__":
    main()
