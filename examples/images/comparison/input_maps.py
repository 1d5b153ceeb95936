"""The two models and the four input maps whose short runs are compared."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch.distributions import Transform

from examples.images.comparison.contenders import COUPLINGS, Contender, residual_flow
from examples.images.comparison.kinds import AdamByKind
from examples.images.comparison.results import Result
from pyro_resflow.transforms import Logit, MarginalGaussianization

ALPHAS = (0.05, 1e-3, 1e-6)
"""Margins of the logit: that of CIFAR-10's models, that of MNIST's, and one between them."""

MODELS: dict[str, Contender] = {
    "residual_flow": Contender("Residual Flow", residual_flow, optimizer=AdamByKind(1e-2)),
    "real_nvp": replace(COUPLINGS["real_nvp"], optimizer=AdamByKind(1e-3)),
}
"""The two models, each with a rate that suits its kind of weights."""


def input_maps() -> dict[str, Callable[[int], Transform]]:
    """Return the input maps by their titles; each is built from a number of grey levels."""
    logits = {f"logit, alpha {alpha:g}": partial(_logit, alpha) for alpha in ALPHAS}
    return {**logits, "marginal Gaussianization": MarginalGaussianization}


def _logit(alpha: float, bins: int) -> Transform:
    return Logit(alpha, event_dim=3)


def contenders() -> dict[tuple[str, str], Contender]:
    """Return a contender for each model and input map, in the order in which they run."""
    return {
        (name, title): replace(model, title=f"{model.title}, {title}", input_map=make_map)
        for title, make_map in reversed(input_maps().items())
        for name, model in MODELS.items()
    }


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table of bits/dim, one row for each set of images and model."""
    titles = list(input_maps())
    lines = [
        f"| images | model | {' | '.join(titles)} |",
        "| --- | --- |" + " ---: |" * len(titles),
    ]
    for data in dict.fromkeys(result.data for result in results):
        for model in MODELS.values():
            found = {r.title: r.bits_per_dim for r in results if r.data == data}
            cells = [found.get(f"{model.title}, {title}") for title in titles]
            shown = [f"{bits:.3f}" if bits is not None else "" for bits in cells]
            lines.append(f"| {data} | {model.title} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
