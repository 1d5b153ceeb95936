"""Saving rejects flows that could not be loaded, and the error gives the reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_resflow import residual, residual_flow
from pyro_resflow.checkpoints import NotRebuildableError, save
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.guides import AutoResidualFlow
from pyro_resflow.logdet import LogDetEstimator
from pyro_resflow.nn import ELU, Tanh
from pyro_resflow.rebuilding import Rebuildable
from pyro_resflow.transforms import Compose, Residual


class Plain(nn.Module):
    """A user's network that is not Rebuildable."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


class Once(Rebuildable, nn.Module):
    """A user's network that modifies its argument."""

    def __init__(self, options: dict[str, float]) -> None:
        super().__init__()
        self.slope = options["slope"]
        if self.slope > 0.4:
            Once.made = getattr(Once, "made", 0) + 1
            if Once.made > 1:
                raise ValueError("there can be one only")

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x


class Stateful(Rebuildable, nn.Module):
    """A user's network with extra state."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x

    def get_extra_state(self) -> object:
        return "more"

    def set_extra_state(self, state: object) -> None:
        pass


class Estimate(LogDetEstimator):
    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read

    def value_and_trace(self, net, x, function):
        return net(x), x.new_full(x.shape[:1], self.read())


def read() -> float:
    return 0.0


def make_activation(alpha: float) -> nn.Module:
    return ELU()


def replaced_part() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    flow.parts[0].net[1] = Tanh()
    return flow


def grown() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    flow.add_module("more", nn.Linear(2, 2))
    return flow


def wider() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    flow.parts[0].net[0].bias = nn.Parameter(torch.zeros(9))
    return flow


def tied() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    flow.parts[2].net[0].bias = flow.parts[0].net[0].bias
    return flow


def set_function() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    flow.parts[0].logdet = read
    return flow


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "lambda": (
        lambda: residual(2, [8], activation=lambda: ELU()),
        "activation of LipschitzMLP, net of Residual: the function .*<lambda>",
    ),
    "partial_of_a_function": (
        lambda: residual(2, [8], activation=partial(make_activation, 1.0)),
        "activation of LipschitzMLP, net of Residual: a partial application of the function",
    ),
    "function": (
        lambda: residual(2, logdet=Estimate(read)),
        "read of Estimate, logdet of Residual: the function read",
    ),
    "function_set_later": (set_function, r"0\.logdet, set after construction: the function"),
    "generator": (
        lambda: Compose(residual(2) for _ in range(2)),
        "parts of Compose: a generator, which can be run through only once",
    ),
    "plain_module": (
        lambda: Residual(Plain()),
        "net of Residual: an object of class Plain, which is not Rebuildable",
    ),
    "extra_state": (lambda: Residual(Stateful()), "'net' has extra state"),
    "once": (lambda: Residual(Once({"slope": 0.5})), "cannot be rebuilt: flow.net"),
    "replaced_part": (
        replaced_part,
        r"'0\.net\.1' is .*Tanh, but its constructor builds .*LipSwish",
    ),
    "grown": (grown, r"'more' is .*Linear, but its constructor builds nothing"),
    "wider": (wider, r"'0\.net\.0\.bias' differ from those"),
    "tied": (tied, r"'2\.net\.0\.bias' is shared with '0\.net\.0\.bias'"),
    "distribution": (
        lambda: ResidualFlow((1, 4, 4), [1], network=ConvBlock(4)).distribution(),
        "expected a transform that is a module, got TransformedDistribution",
    ),
    "torchs": (lambda: torch.distributions.ExpTransform(), "got ExpTransform"),
    "meta": (lambda: residual(2, [8]).to("meta"), "on the meta device"),
    "guide": (
        lambda: AutoResidualFlow(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))),
        "AutoResidualFlow, which is not Rebuildable",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_could_not_be_loaded_is_not_saved(name: str, path: Path) -> None:
    make, message = REFUSED[name]
    path.write_bytes(b"what was there before")
    with pytest.raises(NotRebuildableError, match=message):
        save(make(), path)
    assert path.read_bytes() == b"what was there before"


def test_of_a_distribution_the_transform_is_saved(tmp_path: Path) -> None:
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    density = dist.TransformedDistribution(noise, [residual_flow(2, blocks=1)])
    message = r"got TransformedDistribution\. Save its transform, and build the distribution"
    with pytest.raises(NotRebuildableError, match=message):
        save(density, tmp_path / "flow.safetensors")  # type: ignore[arg-type]
