"""The two models and the four input maps whose short runs are compared."""

from collections.abc import Callable, Sequence
from functools import partial

from torch.distributions import Transform

from examples.images.comparison.contenders import Contender, Shape, residual_flow
from examples.images.comparison.results import Result
from pyro_resflow.flows import ImageFlow, RealNVP
from pyro_resflow.nn import ResidualConditioner
from pyro_resflow.transforms import Logit, MarginalGaussianization

ALPHAS = (0.05, 1e-3, 1e-6)
"""Margins of the logit: that of CIFAR-10's models, that of MNIST's, and one between them."""

LEARNING_RATES = {"residual_flow": 1e-2, "real_nvp": 1e-3}
"""The rate of each model, which suits its kind of weights."""


def real_nvp(shape: Shape, input_map: Transform) -> RealNVP:
    """Build the comparison's Real NVP."""
    return RealNVP(shape, scales=2, network=ResidualConditioner(27, blocks=2), input_map=input_map)


def _residual_flow(shape: Shape, input_map: Transform) -> ImageFlow:
    return residual_flow(shape, input_map=input_map)


MODELS: dict[str, tuple[str, Callable[[Shape, Transform], ImageFlow]]] = {
    "residual_flow": ("Residual Flow", _residual_flow),
    "real_nvp": ("Real NVP", real_nvp),
}


def input_maps(bins: int) -> dict[str, Callable[[], Transform]]:
    """Return the input maps, by their titles."""
    logits = {f"logit, alpha {alpha:g}": partial(Logit, alpha, event_dim=3) for alpha in ALPHAS}
    return {**logits, "marginal Gaussianization": partial(MarginalGaussianization, bins)}


def contenders(bins: int) -> dict[tuple[str, str], Contender]:
    """Return a contender for each model and input map, in the order in which they run.

    Args:
        bins: Number of grey levels.
    """
    return {
        (name, title): Contender(f"{model}, {title}", partial(_with_map, make, make_map))
        for title, make_map in reversed(input_maps(bins).items())
        for name, (model, make) in MODELS.items()
    }


def _with_map(
    make: Callable[[Shape, Transform], ImageFlow], make_map: Callable[[], Transform], shape: Shape
) -> ImageFlow:
    return make(shape, make_map())


def table(results: Sequence[Result], bins: int) -> str:
    """Return a Markdown table of bits/dim, one row for each set of images and model."""
    titles = list(input_maps(bins))
    lines = [
        f"| images | model | {' | '.join(titles)} |",
        "| --- | --- |" + " ---: |" * len(titles),
    ]
    for data in dict.fromkeys(result.data for result in results):
        for model, _ in MODELS.values():
            found = {r.title: r.bits_per_dim for r in results if r.data == data}
            cells = [found.get(f"{model}, {title}") for title in titles]
            shown = [f"{bits:.3f}" if bits is not None else "" for bits in cells]
            lines.append(f"| {data} | {model} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
