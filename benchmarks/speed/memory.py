"""Measure the peak memory of training steps in a new process.

The process imports the libraries and trains a miniature for two steps, so that libraries load
everything that they load on first use. It builds the model and the batch, and measures its
memory. The figure is the additional memory of two training steps: activations, the estimators'
vectors, gradients, the optimizer's state. On a CPU it is the peak of the resident set size, which
Linux lets a process reset; on a GPU it is the memory allocated by torch.

The C library's allocator keeps much of the freed memory, in pieces that may be too small for the
next allocation, so that the resident set can exceed the memory in use. With `LIVE` the allocator
returns freed memory, and the figure is the memory in use. `DEFAULT_MALLOC` keeps the default.
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
    """Measure the bytes that training steps need above imports and model, in a new process.

    Args:
        contender: name of the contender.
        workload: the workload to train.
        device: device of the training.
        environment: environment variables of the process, which configure the allocator.
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
    """Peak memory of a run minus the memory before it, in bytes."""
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
            "peak memory on a CPU: it is measured through /proc/self, which needs Linux; leave "
            "out the group `memory`."
        ) from error
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def main() -> None:
    """Print the bytes that a contender's training steps need."""
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
    """Build a new model, and return a function that trains it for some steps."""
    model = contender.build(workload).to(device)
    step = contender.training(model, workload.data().to(device))

    def steps() -> None:
        for _ in range(STEPS):
            step()

    return steps


if __name__ == "__main__":
    main()
