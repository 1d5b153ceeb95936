"""Measure training steps of published sizes on a GPU: time, operations per second, memory.

python -m benchmarks.scale_device
python -m benchmarks.scale_device --sizes '[MNIST]' --modes '[keep]' --steps 20
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from jsonargparse import auto_cli

from benchmarks.published_sizes import PUBLISHED, FlowSize
from benchmarks.step_cost import MEMORY_MODES, flops
from benchmarks.training_step import TrainingStep
from pyro_resflow.logdet import Krylov
from pyro_resflow.logdet.autograd import Memory

PRECISIONS: Mapping[str, tuple[bool, torch.dtype | None]] = {
    "float32": (False, None),
    "TF32": (True, None),
    "bfloat16": (True, torch.bfloat16),
}
"""Whether convolutions may use TF32, and the dtype of autocast."""


@dataclass(frozen=True)
class Measured:
    """Measurements of training steps.

    Attributes:
        seconds: median time of a step.
        flops: mean number of operations of a step.
        state: bytes allocated between steps.
        peak: largest number of bytes above ``state`` during a step.
    """

    seconds: float
    flops: float
    state: int
    peak: int

    @property
    def tflops(self) -> float:
        """Operations per second, in 10^12."""
        return self.flops / self.seconds / 1e12


def measure(
    size: FlowSize, memory: Memory, batch: int, steps: int, device: str = "cuda"
) -> Measured:
    """Measure training steps, after some that initialise the flow and its kernels.

    Args:
        size: the size of the flow.
        memory: memory mode of the log-determinant.
        batch: images per step.
        steps: number of timed steps.
        device: ``"cuda"``, or ``"cpu"``, whose memory is not measured.
    """
    torch.manual_seed(0)
    step = TrainingStep(size.build(Krylov(memory=memory), device), size.bins)
    images = step.images(batch)
    for _ in range(3):
        step(images)
    counted = [flops(step, batch) for _ in range(2)]
    step.optimizer.zero_grad()
    on_gpu, before, peak = device == "cuda", 0, 0
    if on_gpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated() - images.nbytes
        torch.cuda.reset_peak_memory_stats()
    seconds = [(timed if on_gpu else timed_on_cpu)(lambda: step(images)) for _ in range(steps)]
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() - before - images.nbytes
    return Measured(median(seconds), sum(counted) / len(counted), before, peak)


def timed_on_cpu(run: Callable[[], None]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timed(run: Callable[[], None]) -> float:
    """Seconds of one run, by the clock of the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def main(
    sizes: Sequence[str] = ("MNIST", "CIFAR-10", "ImageNet32"),
    modes: Sequence[Memory] = MEMORY_MODES,
    precisions: Sequence[str] = tuple(PRECISIONS),
    steps: int = 10,
    batch: int | None = None,
) -> None:
    """Print a table of the time and memory of training steps.

    Args:
        sizes: names of published sizes.
        modes: memory modes of the log-determinant.
        precisions: precisions of convolutions; bfloat16 is autocast.
        steps: number of timed steps.
        batch: images per step; by default the published number.
    """
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; Krylov().\n")
    print("| flow | mode | precision | batch | seconds a step | TFLOP/s | state | peak |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in sizes:
        size = PUBLISHED[name]
        number = size.batch if batch is None else batch
        for mode in modes:
            for precision in precisions:
                torch.backends.cudnn.allow_tf32, dtype = PRECISIONS[precision]
                with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
                    found = measure(size, mode, number, steps)
                cells = (f"{found.seconds:.3f}", f"{found.tflops:.1f}")
                held = (f"{each / 1e9:.2f} GB" for each in (found.state, found.peak))
                row = [name, mode, precision, str(number), *cells, *held]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
