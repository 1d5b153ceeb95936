"""What lets a Residual Flow learn fast: short runs that change one thing at a time.

The base is the comparison's Residual Flow with marginal Gaussianization, trained by Adam. The runs
are scored on images held out of the training images.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from examples.images.comparison.clock import AtSteps, Due
from examples.images.comparison.contenders import Contender, Shape, residual_flow
from examples.images.comparison.kinds import AdamByKind, MuonByKind
from examples.images.comparison.results import Result
from examples.images.comparison.training import Protocol
from examples.images.run_errors import SetupError
from examples.images.task import DensityEstimation
from pyro_resflow.flows import ConvBlock, ImageFlow, MLPBlock, ResidualFlow
from pyro_resflow.nn import LipSwish

RATE = 1e-2
"""Learning rate of the base."""

FAST_RATE = 3e-2
"""Adam's rate of the settings that change several things."""

FAST_MUON = 0.1
"""Muon's rate of these settings."""

LARGE_BETA = 4.0
"""LipSwish's beta at the start in these settings."""

WARM_UP = 50
"""Steps in which the learning rate of the base rises."""

LEAST_STEPS = 3
"""Fewest steps that have thirds."""

COUNTED_IMAGES = 16
"""Images of the step whose operations are counted; enough to set the normalisations."""

COUNTED_STEPS = 4
"""Steps whose operations are counted: their number of terms is random."""

ADAM = AdamByKind(RATE)
"""The optimizer of the base."""

MODEL = Contender("base", residual_flow, optimizer=ADAM)
"""The model of the base."""


@dataclass(frozen=True)
class Setting:
    """A setting of a run, which differs from the base in one thing.

    Attributes:
        topic: What it changes.
        title: The change.
        model: The flow and its optimizer; its own title does not count.
        warm_up: Steps in which the learning rate rises.
        equal_cost: Whether the run takes as many operations as the base, not as many steps.
    """

    topic: str
    title: str
    model: Contender = MODEL
    warm_up: int = WARM_UP
    equal_cost: bool = False

    @property
    def label(self) -> str:
        """Its title with the topic."""
        return f"{self.topic}: {self.title}"

    @property
    def name(self) -> str:
        """Its name on the command line and in files."""
        return "_".join(re.findall(r"[\w.-]+", self.label))

    @property
    def contender(self) -> Contender:
        """The model, titled by the setting."""
        return replace(self.model, title=self.label)

    def protocol(
        self, shape: Shape, bins: int, steps: int, seed: int
    ) -> tuple[Protocol, Callable[[], Due]]:
        """Return the training, and the rule that scores after each third of it.

        Args:
            shape: The shape of an image.
            bins: Number of grey levels.
            steps: Steps of the base.
            seed: Random seed.
        """
        if steps < LEAST_STEPS:
            raise SetupError(f"steps {steps}: expected at least {LEAST_STEPS}")
        if self.equal_cost:
            costs = [operations(each, shape, bins) for each in (BASE, self)]
            steps = max(LEAST_STEPS, round(steps * costs[0] / costs[1]))
        protocol = Protocol(
            steps=steps,
            warm_up=self.warm_up,
            fall=0.0,
            tested=1024,
            seed=seed,
        )
        return protocol, partial(AtSteps, (steps // 3, 2 * steps // 3))


def flow(build: Callable[..., ImageFlow] = residual_flow, **options: Any) -> Contender:
    """Return another flow, or the comparison's with other options, with the base's optimizer."""
    return replace(MODEL, flow=partial(build, **options))


def networks(**options: Any) -> Contender:
    """Return the flow whose blocks' networks all have other options."""
    return flow(network=ConvBlock(64, **options), end_network=MLPBlock((128, 128), **options))


def sized(*blocks: int, width: int, end_blocks: int = 4) -> Contender:
    """Return a flow of another depth and width."""
    return flow(ResidualFlow, blocks=blocks, network=ConvBlock(width), end_blocks=end_blocks)


def together(
    title: str, optimizer: Callable[[nn.Module], Optimizer], *blocks: int, width: int = 64
) -> Setting:
    """Return a setting with another optimizer, a larger beta, and perhaps another size."""
    activation = partial(LipSwish, beta=LARGE_BETA)
    model = flow(
        ResidualFlow,
        blocks=blocks or (2, 2),
        network=ConvBlock(width, activation=activation),
        end_network=MLPBlock((128, 128), activation=activation),
    )
    return Setting("together", title, replace(model, optimizer=optimizer), equal_cost=True)


def trained_by(optimizer: Callable[[nn.Module], Optimizer]) -> Contender:
    """Return the base's flow with another optimizer."""
    return replace(MODEL, optimizer=optimizer)


def adam(title: str, rate: float = RATE, topic: str = "Adam", **options: Any) -> Setting:
    """Return a setting of another optimizer."""
    return Setting(topic, title, trained_by(AdamByKind(rate, **options)))


def factor(kind: str, value: float) -> Setting:
    """Return a setting with another rate for one kind of parameter."""
    return adam(f"{kind} x {value:g}", topic="rate of a kind", factors={kind: value})


BASE = Setting("base", "Adam, rate 1e-2")

FAST_ADAM = AdamByKind(FAST_RATE)
FAST_MUON_AND_ADAM = MuonByKind(FAST_MUON, FAST_RATE)

SETTINGS: tuple[Setting, ...] = (
    BASE,
    *(adam(f"{rate:g}", rate, topic="rate") for rate in (1e-3, 3e-3, 2e-2, 3e-2)),
    *(Setting("warm-up", f"{steps} steps", warm_up=steps) for steps in (1, 20, 100)),
    factor("activations", 0.1),
    factor("activations", 3.0),
    factor("norms", 0.1),
    factor("norms", 0.3),
    factor("norms", 3.0),
    factor("weights", 0.3),
    factor("weights", 3.0),
    *(
        adam(f"second beta {beta:g}", topic="Adam", betas=(0.9, beta))
        for beta in (0.95, 0.98, 0.999)
    ),
    *(adam(f"{decay:g}", topic="weight decay", decay=decay) for decay in (0.01, 0.1, 1.0)),
    *(
        Setting("start of beta", f"{beta:g}", networks(activation=partial(LipSwish, beta=beta)))
        for beta in (0.31, 2.1, 4)
    ),
    *(
        Setting("coefficient", f"{value:g}", networks(coefficient=value))
        for value in (0.9, 0.99, 0.999)
    ),
    Setting("ActNorm", "of each pixel", flow(norms_of_pixels=True)),
    *(
        Setting("Muon", f"{rate:g}, Adam {RATE:g}", trained_by(MuonByKind(rate, RATE)))
        for rate in (3e-3, 1e-2, 3e-2, 1e-1)
    ),
    Setting("size", "blocks (1, 1), width 128", sized(1, 1, width=128), equal_cost=True),
    Setting("size", "blocks (4, 4), width 32", sized(4, 4, width=32), equal_cost=True),
    Setting("size", "blocks (1, 5), width 64", sized(1, 5, width=64), equal_cost=True),
    Setting("size", "end blocks 8", sized(2, 2, width=64, end_blocks=8), equal_cost=True),
    Setting("size", "end blocks 0", sized(2, 2, width=64, end_blocks=0), equal_cost=True),
    together("rate 0.03, beta 4", FAST_ADAM),
    together("Muon 0.1, Adam 0.03, beta 4", FAST_MUON_AND_ADAM),
    together("blocks (4, 4), width 32, rate 0.03, beta 4", FAST_ADAM, 4, 4, width=32),
    together("blocks (4, 4), width 32, Muon, beta 4", FAST_MUON_AND_ADAM, 4, 4, width=32),
    together("blocks (8, 8), width 16, rate 0.03, beta 4", FAST_ADAM, 8, 8, width=16),
    together("blocks (8, 8), width 16, Muon, beta 4", FAST_MUON_AND_ADAM, 8, 8, width=16),
    together("blocks (4, 4), width 64, rate 0.03, beta 4", FAST_ADAM, 4, 4, width=64),
    together("blocks (8, 8), width 32, rate 0.03, beta 4", FAST_ADAM, 8, 8, width=32),
)
"""All settings; the base comes first."""


def operations(setting: Setting, shape: Shape, bins: int) -> int:
    """Return the floating-point operations of the products of a few steps, which are drawn."""
    with isolate_rng():
        torch.manual_seed(0)
        task = DensityEstimation(setting.model.build(shape, bins), bins)
        images = torch.randint(bins, (COUNTED_IMAGES, *shape))
        task.bits_per_dim(images)  # the first batch sets the normalisations
        with FlopCounterMode(display=False) as counter:
            for _ in range(COUNTED_STEPS):
                task.bits_per_dim(images).mean().backward()
    return counter.get_total_flops()


def table(results: Sequence[Result], settings: Sequence[Setting]) -> str:
    """Return a Markdown table of mean bits/dim over seeds, one row for each setting with results.

    Args:
        results: The results of one number of steps and any number of seeds.
        settings: The settings, in order; the base comes first.
    """
    runs = {each.label: [run for run in results if run.title == each.label] for each in settings}
    base = _mean(run.bits_per_dim for run in runs[settings[0].label])
    lines = [
        "| what | setting | seeds | steps | seconds | a third | two thirds | the end "
        "| end - base |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in settings:
        if found := runs[each.label]:
            curves = [[point.bits_per_dim for point in run.curve] for run in found]
            way = [_mean(scores) for scores in zip(*curves, strict=True)]
            end = _mean(run.bits_per_dim for run in found)
            scores = " | ".join(f"{score:.3f}" for score in (*way, end))
            seconds = _mean(run.seconds for run in found)
            lines.append(
                f"| {each.topic} | {each.title} | {len(found)} | {found[0].steps} "
                f"| {seconds:.0f} | {scores} | {end - base:+.3f} |"
            )
    return "\n".join(lines) + "\n"


def _mean(scores: Iterable[float]) -> float:
    """Return the mean, nan without a score."""
    found = list(scores)
    return fmean(found) if found else math.nan
