"""Build models of different libraries that are the same density, and check it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .contenders import Contender, Model, Step
from .workloads import Workload


def equal_models(
    contenders: Iterable[Contender], workload: Workload, device: torch.device
) -> dict[str, Model]:
    """Build a model of each contender, all with the same weights.

    Raises:
        ValueError: if a network is not the same function as ours, to 1e-5.
    """
    networks = workload.networks()
    x = workload.data()
    models = {}
    for contender in contenders:
        model = contender.build(workload)
        model.load(networks)
        check_same_function(contender.name, model.networks, networks, x)
        models[contender.name] = model.to(device)
    return models


def equal_steps(
    contenders: Sequence[Contender], workload: Workload, device: torch.device
) -> dict[str, Step]:
    """A training step of each contender, of models with the same weights on the same batch."""
    models = equal_models(contenders, workload, device)
    x = workload.data().to(device)
    return {each.name: each.training(models[each.name], x) for each in contenders}


@torch.no_grad()
def check_same_function(
    name: str, found: Sequence[nn.Module], expected: Sequence[nn.Module], x: Tensor
) -> None:
    """Raise an error unless all networks agree at x.

    Raises:
        ValueError: naming the library whose network differs from ours, and the difference.
    """
    for i, (theirs, ours) in enumerate(zip(found, expected, strict=True)):
        difference = float((theirs(x) - ours(x)).abs().max())
        if not difference <= 1e-5:
            raise ValueError(
                f"{name}: the network of block {i} differs from ours by {difference:.1e} after "
                "its weights were copied, so the benchmark would compare different functions."
            )
