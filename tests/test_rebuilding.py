from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow import conditional_residual, flows, logdet, solvers, transforms
from pyro_resflow import nn as networks
from pyro_resflow.nn import ELU, LipschitzMLP, LipSwish
from pyro_resflow.rebuilding import MadeWith, NotKept, Rebuildable
from pyro_resflow.transforms import Compose, Residual


class Net(Rebuildable, nn.Module):
    """A network of two others."""

    def __init__(self, one: nn.Module, *, two: nn.Module, size: int = 3) -> None:
        super().__init__()
        self.one = one
        self.two = two


class Empty(Rebuildable):
    """An object without a constructor of its own."""


def test_arguments_are_kept_as_they_were_given() -> None:
    one, two = nn.Linear(2, 2), nn.Tanh()
    assert Net(one, two=two).made_with == MadeWith((one,), {"two": two})
    assert Empty().made_with == MadeWith((), {})


@dataclass(frozen=True)
class Recipe:
    """How to make something."""

    make: Callable[[], object]
    sizes: Sequence[int] = (1, 2)


def test_of_a_recipe_its_values_are_kept_but_not_its_functions() -> None:
    recipe = Recipe(nn.Tanh, sizes=[3])
    assert Net(recipe, two=recipe).made_with == MadeWith((recipe,), {"two": recipe})
    net = Net(Recipe(lambda: 0), two=nn.Tanh())
    (kept,) = net.made_with.args
    assert isinstance(kept, Recipe)
    assert isinstance(kept.make, NotKept)
    assert isinstance(net.one.make(), int)


def test_superfluous_arguments_are_refused_as_ever() -> None:
    with pytest.raises(TypeError, match=r"Empty\(\) takes no arguments"):
        Empty(3)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        Net(nn.Tanh(), two=nn.Tanh(), three=3)
    with pytest.raises(TypeError):
        logdet.NoTail(3)


def test_a_module_registers_nothing_twice() -> None:
    net = Net(nn.Linear(2, 2), two=nn.Linear(2, 2))
    assert [name for name, _ in net.named_modules()] == ["", "one", "two"]
    assert len(net.state_dict()) == len(list(net.named_parameters())) == 4


def test_copies_refer_to_their_own_parts() -> None:
    net = Net(nn.Linear(2, 2), two=nn.Tanh())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.made_with.args[0] is other.one
        assert other.one is not net.one
        assert other.made_with.kwargs["two"] is other.two
    assert copy.copy(net).made_with == net.made_with


def test_a_list_is_remembered_as_it_was() -> None:
    parts = [transforms.ActNorm(2)]
    flow = Compose(parts)
    parts.append(transforms.ActNorm(3))
    assert flow.made_with.args == ([flow.parts[0]],)


def activation() -> ELU:
    return ELU()


@pytest.mark.parametrize(
    "make", [activation, lambda: ELU(), partial(activation), [activation], {"a": activation}]
)
def test_functions_are_remembered_by_name_alone(make: object) -> None:
    """So that whoever was given a lambda can be pickled as before, and holds no closure."""
    net = Net(nn.Tanh(), two=nn.Tanh(), size=make)
    kept = net.made_with.kwargs["size"]
    kept = (
        next(iter(kept.values() if isinstance(kept, dict) else kept), None)
        if isinstance(kept, list | dict)
        else kept
    )
    assert isinstance(kept, NotKept)
    assert "function" in kept.description
    pickle.dumps(net)


def test_a_network_of_a_lambda_is_pickled_and_copied() -> None:
    net = LipschitzMLP(2, [4], activation=lambda: LipSwish())
    x = torch.randn(3, 2)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_an_iterator_is_not_run_through() -> None:
    flow = Compose(each for each in [transforms.ActNorm(2), transforms.ActNorm(2)])
    assert len(flow.parts) == 2
    assert flow.made_with.args == (NotKept("a generator, which can be run through only once"),)


def test_nothing_is_kept_alive_longer_than_before() -> None:
    conditional = conditional_residual(2, 3)
    context: Tensor = torch.randn(4, 3)
    reference = weakref.ref(context)
    transform = conditional.condition(context)
    gc.disable()  # it goes at once: there is no cycle
    try:
        del transform, context
        assert reference() is None
    finally:
        gc.enable()


PARTS = [networks, logdet, solvers, transforms, flows]
OTHERS = {
    # errors, protocols, results, and what a solver makes for itself
    "Conditioner",
    "ConvergenceError",
    "Estimate",
    "FixedPointError",
    "FixedPointIteration",
    "NetworkRecipe",
    "NoisyEnergyError",
    "NoisyExponentialError",
    "NonFiniteWeightError",
    "Tail",
}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_public_class_can_be_made_again(part: object) -> None:
    classes = [getattr(part, name) for name in part.__all__]
    classes = [each for each in classes if inspect.isclass(each) and each.__name__ not in OTHERS]
    assert classes
    for each in classes:
        assert issubclass(each, Rebuildable) or hasattr(each, "__dataclass_fields__"), each


def test_residual_of_any_module_remembers_it() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    assert Residual(net).made_with.args == (net,)
