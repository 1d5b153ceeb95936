"""Compare the predictions of `benchmarks.scale` with measurements of small flows on this machine.

The measured memory is the peak resident memory during training steps, as the operating system
reports it, minus the resident memory before them. Each measurement runs in its own process, whose
allocator returns freed memory immediately, so that resident memory is memory in use. Operations
are counted in real training steps, with their random draws of the roulette and their actual
iterations of the norms.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.process_memory import resident
from benchmarks.published_sizes import FlowSize
from benchmarks.step_cost import MEMORY_MODES, flops, predict
from benchmarks.training_step import TrainingStep
from pyro_resflow.flows import ConvBlock
from pyro_resflow.logdet import Krylov

TOLERANCE = 0.1

SMALL: Mapping[str, FlowSize] = {
    "4 blocks, 1x28x28, 64 wide": FlowSize(
        (1, 28, 28), (4,), {"network": ConvBlock(64), "end_blocks": 0}, batch=16
    ),
    "4 blocks, 4x14x14, 256 wide": FlowSize(
        (4, 14, 14), (4,), {"network": ConvBlock(256), "end_blocks": 0}, batch=16
    ),
    "2-1-1 blocks, 3x32x32, 128 wide, factored out": FlowSize(
        (3, 32, 32),
        (2, 1, 1),
        {"network": ConvBlock(128), "end_blocks": 1, "squeeze_first": True, "factor_out": True},
        batch=32,
    ),
}

# glibc: one arena; blocks of 64 KiB and more are taken from the system and returned to it
_RETURN_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}


def measure(size: FlowSize, memory: str, steps: int) -> dict[str, float]:
    """Measure training steps in this process: peak resident bytes above the state, operations."""
    torch.manual_seed(0)
    step = TrainingStep(size.build(Krylov(memory=memory), "cpu"), size.bins)
    for _ in range(2):  # initialises the ActNorms, the optimizer and the kernels
        step(step.images(size.batch))
    step.optimizer.zero_grad()
    images = step.images(size.batch)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    step(images)
    peak = resident("VmHWM") - before
    counted = [flops(step, size.batch) for _ in range(steps)]
    return {"peak": peak, "flops": sum(counted) / steps}


def measure_in_fresh_process(name: str, memory: str, steps: int = 10) -> dict[str, float]:
    """:func:`measure` of one of the small flows."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale_check", name, memory, str(steps)],
        env={**os.environ, **_RETURN_FREED_MEMORY},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(run.stdout)
    return result


def check() -> bool:
    """Print predictions and measurements; return whether all agree within the tolerance."""
    print("| flow | mode | | predicted | measured | ratio |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    ratios = []
    for name, size in SMALL.items():
        for memory in MEMORY_MODES:
            cost = predict(size, memory)
            measured = measure_in_fresh_process(name, memory)
            for quantity, unit, expected, found in (
                ("memory", "MB", cost.peak.at(size.batch) / 1e6, measured["peak"] / 1e6),
                ("operations", "GFLOP", cost.flops / 1e9, measured["flops"] / 1e9),
            ):
                ratios.append(found / expected)
                row = [name, memory, quantity, f"{expected:.1f} {unit}", f"{found:.1f} {unit}"]
                print(f"| {' | '.join([*row, f'{ratios[-1]:.3f}'])} |", flush=True)
    return all(abs(ratio - 1) <= TOLERANCE for ratio in ratios)


if __name__ == "__main__":
    name, memory, steps = sys.argv[1:]
    print(json.dumps(measure(SMALL[name], memory, int(steps))))
