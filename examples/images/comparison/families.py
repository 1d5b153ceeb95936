"""Short runs that choose the learning rate of each family of models."""

from collections.abc import Sequence
from dataclasses import replace

from examples.images.comparison.contenders import CONTENDERS
from examples.images.comparison.kinds import AdamByKind
from examples.images.comparison.rates import Setting
from examples.images.comparison.results import Result

RATES = (1e-3, 2e-3, 4e-3, 1e-2, 3e-2)
"""The learning rates that are compared."""

FAMILIES = {
    "Real NVP": "real_nvp",
    "Glow": "glow",
    "Jet": "jet",
    "Flow++, affine": "flow_plus_plus_uniform_affine_no_attention",
    "Flow++, mixture": "flow_plus_plus_uniform_mixture_no_attention",
    "Residual Flow": "residual_flow_lipswish_uniform",
    "i-ResNet": "i_resnet",
    "i-DenseNet": "i_densenet",
    "monotone flow": "monotone",
}
"""One contender of each family."""


def settings() -> list[Setting]:
    """Return a setting for each family and rate."""
    return [
        Setting(family, f"{rate:g}", replace(CONTENDERS[name], optimizer=AdamByKind(rate)))
        for family, name in FAMILIES.items()
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
