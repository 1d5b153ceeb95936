"""Peak memory of training steps, measured in a process of its own.

The process imports the libraries, trains a miniature for two steps, so that what a library loads
on first use counts as imported, builds the model and the batch, and only then notes how much
memory it has in use. What two training steps take above that is the figure: activations, the
estimators' vectors, gradients, the optimizer's state. On a CPU it is the resident set size, whose
high-water mark Linux lets a process reset; on a GPU what torch has allocated.

The C library's allocator keeps much of what is freed, in pieces that the next allocation may not
fit into, so that its resident set grows beyond what is ever in use. `LIVE` has it return freed
memory, so that the figure is memory in use; `DEFAULT_MALLOC` leaves it as users find it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.process_memory import resident

from .contenders import CONTENDERS, Contender, Step
from .machine import ROOT
from .workloads import Workload

STEPS = 2
LIVE = {"MALLOC_MMAP_THRESHOLD_": "65536"}
DEFAULT_MALLOC: dict[str, str] = {}


def peak_memory(
    contender: str,
    workload: Workload,
    device: torch.device,
    environment: Mapping[str, str] = LIVE,
) -> int:
    """Bytes that training steps take above imports and model, in a fresh process.

    Args:
        contender: its name.
        workload: what it trains.
        device: where.
        environment: variables of the process, which set up the allocator.
    """
    threads = str(torch.get_num_threads())
    arguments = [contender, json.dumps(asdict(workload)), device.type, threads]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.memory", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": threads, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(run.stdout)


def peak_above_now(run: Callable[[], object], device: torch.device) -> int:
    """Bytes in use at the peak of a run beyond those in use before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError as error:
        raise RuntimeError(
            "Peak memory on a CPU is measured through /proc/self, which needs Linux; leave the "
            "group `memory` out."
        ) from error
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def main() -> None:
    """Print the bytes that a contender's training steps take."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("workload", type=json.loads)
    parser.add_argument("device", type=torch.device)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in given.workload.items()}
    workload = Workload(**sizes)
    contender = CONTENDERS[given.contender]
    training(contender, workload.miniature(), given.device)()
    print(peak_above_now(training(contender, workload, given.device), given.device))


def training(contender: Contender, workload: Workload, device: torch.device) -> Step:
    """Some training steps of a new model, which stands when this returns."""
    model = contender.build(workload).to(device)
    step = contender.training(model, workload.data().to(device))

    def steps() -> None:
        for _ in range(STEPS):
            step()

    return steps


if __name__ == "__main__":
    main()
