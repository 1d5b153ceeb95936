"""Run a small flow for a long time: check for growing memory, live graphs and too large norms.

    python -m benchmarks.soak training       # 2,000 training steps
    python -m benchmarks.soak scoring        # 10,000 calls of log_prob without gradients
    python -m benchmarks.soak contraction    # the layers' norms after each of 2,000 steps

Memory is the resident memory that Linux reports.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from benchmarks.contraction import Excess, LongPowerIteration
from benchmarks.process_memory import resident
from benchmarks.training_step import TrainingStep
from pyro_resflow.flows import ConvBlock, MLPBlock, ResidualFlow

BINS = 17


def flow_of(blocks: tuple[int, ...], channels: int) -> ResidualFlow:
    """A flow of 8x8 digits with every kind of layer of the demo's flow."""
    return ResidualFlow(
        (1, 8, 8),
        blocks,
        network=ConvBlock(channels),
        end_blocks=1,
        end_network=MLPBlock((4 * channels,)),
    )


def digits() -> Tensor:
    """Images of shape ``(1797, 1, 8, 8)``, 17 grey levels."""
    from sklearn.datasets import load_digits

    return torch.as_tensor(load_digits().images, dtype=torch.uint8).unsqueeze(1)


def live_graphs() -> int:
    """Number of live nodes of our autograd functions: each keeps the graph of a block."""
    nodes = torch.autograd.function.BackwardCFunction
    return sum(issubclass(type(o), nodes) for o in gc.get_objects())


def growth(call: Callable[[], object], calls: int, warm_up: int) -> float:
    """Relative growth of resident memory from call ``warm_up`` to the last call."""
    for _ in range(warm_up):
        call()
    before = resident()
    for _ in range(calls - warm_up):
        call()
    return resident() / before - 1


class Training:
    """Steps on random batches of the digits, at the demo's highest learning rate.

    Args:
        flow: the flow.
        batch: images in a batch.
    """

    def __init__(self, flow: ResidualFlow, batch: int) -> None:
        self.images = digits()
        self.batch = batch
        self.step = TrainingStep(flow, BINS)
        for group in self.step.optimizer.param_groups:
            group["lr"] = 5e-3
        with torch.no_grad():
            self.step.distribution.log_prob(self.images[:256])

    def __call__(self) -> None:
        """Take one step."""
        self.step(self.images[torch.randint(len(self.images), (self.batch,))])


def training(steps: int = 2000, warm_up: int = 200) -> tuple[float, int]:
    """Growth of resident memory over training steps, and live graphs after the last step."""
    run = Training(flow_of((1,), channels=4), batch=8)
    grown = growth(run, steps, warm_up)
    return grown, live_graphs()


def scoring(calls: int = 10_000, warm_up: int = 200) -> float:
    """Growth of resident memory over calls of log_prob without gradients."""
    run = Training(flow_of((1,), channels=4), batch=8)

    @torch.no_grad()
    def score() -> Tensor:
        return run.step.distribution.log_prob(run.images[: run.batch])

    return growth(score, calls, warm_up)


def contraction(steps: int = 2000) -> tuple[Excess, int]:
    """The largest excess of a layer's norm over its coefficient after any step, and that step."""
    run = Training(flow_of((1, 1), channels=8), batch=16)
    measured = LongPowerIteration(run.step.flow)
    worst = Excess(-1.0, ""), 0
    for step in range(1, steps + 1):
        run()
        worst = max(worst, (measured.excess(), step))
    return worst


def main(measurement: Literal["training", "scoring", "contraction"], seed: int = 0) -> None:
    """Run one of the three measurements and print its result.

    Args:
        measurement: The measurement to run.
        seed: Seed of the weights, the batches and the noise.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    if measurement == "training":
        grown, graphs = training()
        print(f"resident memory grew by {grown:.2%} after the first 200 of 2,000 training steps")
        print(f"graphs alive after the last step: {graphs}")
    elif measurement == "scoring":
        print(f"resident memory grew by {scoring():.2%} after the first 200 of 10,000 log_probs")
    else:
        (relative, layer), step = contraction()
        print(f"largest excess over the coefficient: {relative:.3%}, step {step}, {layer}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
