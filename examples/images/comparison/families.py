"""Short runs that choose the learning rate of each family of models."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from examples.images.comparison.contenders import CONTENDERS, Contender, residual_flow
from examples.images.comparison.kinds import AdamByKind
from examples.images.comparison.rates import Setting
from examples.images.comparison.results import Result
from pyro_resflow.flows import ConvBlock, MLPBlock
from pyro_resflow.logdet import PowerSeries
from pyro_resflow.nn import ELU

RATES = (1e-3, 2e-3, 4e-3, 1e-2, 3e-2)
"""The learning rates that are compared."""

FAMILIES = {
    "Real NVP": CONTENDERS["real_nvp"],
    "Glow": CONTENDERS["glow"],
    "Jet": CONTENDERS["jet"],
    "Flow++, affine": CONTENDERS["flow_plus_plus_uniform_affine_no_attention"],
    "Flow++, mixture": CONTENDERS["flow_plus_plus_uniform_mixture_no_attention"],
    "Residual Flow": Contender("(2, 2) blocks", residual_flow),
    "i-ResNet": Contender(
        "(2, 2) blocks",
        partial(
            residual_flow,
            network=ConvBlock(64, activation=ELU, coefficient=0.9),
            end_network=MLPBlock((128, 128), activation=ELU, coefficient=0.9),
            logdet=PowerSeries(5),
        ),
    ),
    "i-DenseNet": CONTENDERS["i_densenet"],
    "monotone flow": CONTENDERS["monotone"],
}
"""One model of each family. The Residual Flow and the i-ResNet are shallower than the contenders,
as in the other short runs."""


def settings() -> list[Setting]:
    """Return a setting for each family and rate."""
    return [
        Setting(family, f"{rate:g}", replace(model, optimizer=AdamByKind(rate)))
        for family, model in FAMILIES.items()
        for rate in RATES
    ]


def table(results: Sequence[Result], settings: Sequence[Setting]) -> str:
    """Return a Markdown table of bits/dim, a row for each family, with the best rate in bold.

    Args:
        results: The results of one number of steps and one seed.
        settings: The settings.
    """
    found = {run.title: run.bits_per_dim for run in results}
    lines = [
        f"| family | {' | '.join(f'{rate:g}' for rate in RATES)} |",
        "| --- |" + " ---: |" * len(RATES),
    ]
    for family in dict.fromkeys(each.topic for each in settings):
        scores = [found.get(each.label) for each in settings if each.topic == family]
        least = min((score for score in scores if score is not None), default=None)
        cells = ["" if score is None else f"{score:.3f}" for score in scores]
        cells = [f"**{c}**" if s == least and c else c for c, s in zip(cells, scores, strict=True)]
        if least is not None:
            lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
