"""The sections of the benchmark. Each one prints its rows while there is time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.scale_device import PRECISIONS, measure
from benchmarks.speed.contenders import DEFAULT, PLAIN, REDUCED, Contender
from benchmarks.speed.equality import equal_steps
from benchmarks.speed.marks import footnotes
from benchmarks.speed.report import details
from benchmarks.speed.timing import alternating
from benchmarks.speed.workloads import Workload

from .agreement import check_recordings
from .contenders import GRAPHED, UNREAD
from .graphed import record_on_cuda
from .plan import Plan

TESTS = "tests/test_cuda.py"


@dataclass
class Budget:
    """The seconds of a run.

    Args:
        seconds: all of them.
        clock: returns the present time in seconds.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.clock()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (self.clock() - self.start)

    def allows(self, row: str) -> bool:
        """Whether time is left for a row; prints that it is left out otherwise."""
        if self.left > 0:
            return True
        print(f"{row}: left out, the {self.seconds:.0f} seconds are over.", flush=True)
        return False


def training(plan: Plan, device: torch.device, budget: Budget) -> None:
    """Training steps on images."""
    for workload in plan.images:
        _compare(workload, plan.repeats, device, budget)


def vectors(plan: Plan, device: torch.device, budget: Budget) -> None:
    """Training steps on vectors."""
    for workload in plan.vectors:
        _compare(workload, plan.repeats, device, budget)


def _compare(workload: Workload, repeats: int, device: torch.device, budget: Budget) -> None:
    title = f"training step, {workload.name}: {workload.blocks} blocks, batch {workload.batch}"
    if not budget.allows(title):
        return
    contenders: list[Contender] = [DEFAULT, UNREAD, REDUCED, PLAIN]
    if device.type == "cuda" and _agree(workload, device):
        contenders.insert(2, GRAPHED)
    steps = equal_steps(contenders, workload, device)
    found = alternating(title, steps, repeats, warm_up=2)
    notes = footnotes(c.name for c in contenders)
    print(*details(found), *notes, "", sep="\n\n", flush=True)


def _agree(workload: Workload, device: torch.device) -> bool:
    """Whether recorded steps train as eager ones do; prints it."""
    try:
        difference = check_recordings(workload, device, record_on_cuda)
    except RuntimeError as error:  # of the check, or of CUDA, which refused to record
        print(f"CUDA graphs, {workload.name}: {error}", flush=True)
        return False
    print(f"CUDA graphs, {workload.name}: parameters agree to {difference:.1e}.", flush=True)
    return True


def published(plan: Plan, device: torch.device, budget: Budget) -> None:
    """Training steps of the published size."""
    print("| flow | batch | precision | seconds a step | TFLOP/s | state | peak |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for name, size in plan.published.items():
        for batch in plan.batches:
            for precision, (tf32, dtype) in PRECISIONS.items():
                if not budget.allows(f"{name}, batch {batch}, {precision}"):
                    continue
                torch.backends.cudnn.allow_tf32 = tf32
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    found = measure(size, "recompute", batch, plan.steps, device.type)
                held = (f"{each / 1e9:.2f} GB" for each in (found.state, found.peak))
                row = [name, str(batch), precision, f"{found.seconds:.3f}", f"{found.tflops:.1f}"]
                print(f"| {' | '.join([*row, *held])} |", flush=True)


def tests(plan: Plan, device: torch.device, budget: Budget) -> None:
    """The tests that need a GPU; elsewhere they are skipped."""
    if not budget.allows(TESTS):
        return
    command: Sequence[str] = [sys.executable, "-m", "pytest", "-q", TESTS]
    try:
        code = subprocess.run(command, timeout=budget.left, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"{TESTS}: stopped, the {budget.seconds:.0f} seconds are over.")
    else:
        print(f"{TESTS}: pytest returned {code}.")


SECTIONS: dict[str, Callable[[Plan, torch.device, Budget], None]] = {
    "training": training,
    "vectors": vectors,
    "published": published,
    "tests": tests,
}
