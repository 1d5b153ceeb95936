"""Loading a flow with the user's own classes needs these classes as an argument."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow import residual
from pyro_resflow.checkpoints import NotRebuildableError, UnknownClassError, load, save
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.nn import ELU, Chain
from pyro_resflow.rebuilding import Rebuildable
from pyro_resflow.transforms import Compose, Residual
from tests.checkpoints.roundtrips import check_same_state


class Sine(Rebuildable, nn.Module):
    """A user's network, whose wave is no parameter and does not stand in the state."""

    def __init__(self, size: int, *, frequency: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.calls = 0
        self.register_buffer("wave", torch.full((size,), frequency), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * torch.sin(self.wave * self.linear(x))


class Cube(ELU):
    """A user's activation."""


@dataclass(frozen=True)
class Narrow:
    """A user's recipe."""

    width: int = 4

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Chain:
        return ConvBlock(self.width)(event_shape, preactivation=preactivation)


def test_own_classes(path: Path) -> None:
    flow = Compose([Residual(Sine(2, frequency=3.0)), residual(2, [8], activation=Cube)])
    flow.parts[0].net.calls = 4
    save(flow, path)
    loaded = load(path, classes=[Sine, Cube])
    assert type(loaded.parts[0].net) is Sine
    assert loaded.parts[0].net.calls == 4
    x = torch.randn(4, 2)
    assert torch.equal(loaded._call(x), flow._call(x))
    assert (
        load(path, classes=[Sine, Cube], dtype=torch.float64)._call(x.double()).dtype
        == torch.float64
    )


def test_own_recipes(path: Path) -> None:
    flow = ResidualFlow((1, 4, 4), [1], network=Narrow(3), end_blocks=0)
    save(flow, path)
    check_same_state(load(path, classes=[Narrow]), flow)


@pytest.mark.parametrize("classes", [[], [Sine], [Narrow, Cube]])
def test_own_classes_have_to_be_given(classes: list[type], path: Path) -> None:
    save(Compose([Residual(Sine(2)), residual(2, [8], activation=Cube)]), path)
    missing = sorted({"Sine", "Cube"} - {each.__name__ for each in classes})
    with pytest.raises(UnknownClassError, match=rf"classes=\[{', '.join(missing)}\]"):
        load(path, classes=classes)


def test_two_classes_of_one_name(path: Path) -> None:
    other = type("Sine", (Sine,), {"__module__": "elsewhere"})
    with pytest.raises(NotRebuildableError, match="two classes named Sine"):
        save(Compose([Residual(Sine(2)), Residual(other(2))]), path)
    with pytest.raises(UnknownClassError, match="two classes named Sine"):
        load(path, classes=[Sine, other])
    with pytest.raises(UnknownClassError, match="expected classes"):
        load(path, classes=[residual])
