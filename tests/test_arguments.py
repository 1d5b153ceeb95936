"""Wrong arguments of constructors and factories raise errors that name class and argument."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import pyro_resflow
from pyro_resflow import (
    flows,
    guides,
    logdet,
    solvers,
    transforms,
)
from pyro_resflow import nn as networks
from pyro_resflow.arguments import checked, expectation
from pyro_resflow.classifiers import IResNetClassifier
from pyro_resflow.distributions import Dequantized
from pyro_resflow.hybrid import Hybrid
from pyro_resflow.nn import LipschitzMLP, Tanh

INTEGERS = r"expected a sequence of integers, got 64; write \[64\]\."
UNKNOWN = r"there is no argument 'n_blocks'; did you mean 'blocks'\?$"
VECTORS: dict[str, Callable[..., object]] = {
    "residual_flow": partial(pyro_resflow.residual_flow, 3),
    "conditional_residual_flow": partial(pyro_resflow.conditional_residual_flow, 3, 2),
    "residual": partial(transforms.residual, 3),
    "conditional_residual": partial(transforms.conditional_residual, 3, 2),
    "monotone": partial(transforms.monotone, 3),
    "AmortizedResidualFlow": partial(guides.AmortizedResidualFlow, 3, 2),
    "AutoResidualFlow": partial(guides.AutoResidualFlow, lambda: None),
    "LipschitzMLP": partial(networks.LipschitzMLP, 3),
    "ConditionalLipschitzMLP": partial(networks.ConditionalLipschitzMLP, 3, 2),
    "ConditionalGatedLipschitzMLP": partial(networks.ConditionalGatedLipschitzMLP, 3, 2),
    "MLPBlock": flows.MLPBlock,
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_width_in_place_of_widths_is_answered_by_what_to_write(name):
    with pytest.raises(TypeError, match=f"^{name}: hidden_dims: {INTEGERS}"):
        VECTORS[name](hidden_dims=64)


BLOCKS = [name for name in VECTORS if name.endswith(("flow", "Flow"))]


@pytest.mark.parametrize("name", BLOCKS)
def test_an_argument_that_does_not_exist_is_answered_by_the_nearest(name):
    with pytest.raises(TypeError, match=f"^{name}: {UNKNOWN}"):
        VECTORS[name](n_blocks=3)


OF_VECTORS = ("residual", "residual_flow", "AutoResidualFlow")
OF_A_CONTEXT = ("conditional_residual", "conditional_residual_flow", "AmortizedResidualFlow")


@pytest.mark.parametrize(
    ("names", "network", "wanted"),
    [
        (OF_VECTORS, networks.ConditionalLipschitzMLP, r"\(input_dim, hidden_dims\)"),
        (OF_A_CONTEXT, networks.GatedLipschitzMLP, r"\(input_dim, context_dim, hidden_dims\)"),
        (OF_VECTORS, torch.nn.Linear, r"\(input_dim, hidden_dims\)"),
    ],
)
def test_a_class_of_networks_of_another_kind_is_answered_by_a_right_one(names, network, wanted):
    for name in names:
        message = (
            f"^{name}: network: expected a class made from {wanted}, .* got {network.__name__}"
        )
        with pytest.raises(TypeError, match=message):
            VECTORS[name](network=network)


class AnyArguments(networks.ConditionalGatedLipschitzMLP):
    """A class of a user's own, which takes and passes on any arguments."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)


def test_a_class_of_ones_own_is_taken():
    flow = pyro_resflow.conditional_residual_flow(3, 2, blocks=1, network=AnyArguments)
    assert any(isinstance(part, AnyArguments) for part in flow.modules())


def test_a_shape_in_place_of_a_size_is_answered_by_what_to_write():
    message = r"^residual_flow: input_dim: expected an integer, got \(3,\); write 3\."
    with pytest.raises(TypeError, match=message):
        pyro_resflow.residual_flow((3,))


@pytest.mark.parametrize("width", [0, -1])
def test_sizes_are_at_least_one(width):
    with pytest.raises(ValueError, match=r"^residual_flow: hidden_dims: expected at least 1, got"):
        pyro_resflow.residual_flow(2, hidden_dims=[8, width])


PACKAGES = (flows, guides, logdet, networks, solvers, transforms)
PUBLIC = {name: getattr(package, name) for package in PACKAGES for name in package.__all__}
del PUBLIC["Solver"]  # an earlier name of FixedPointSolver, whose errors give the new one
PUBLIC |= {each.__name__: each for each in (IResNetClassifier, Dequantized, Hybrid)}


def arguments() -> list[tuple[str, str]]:
    """Every public constructor and factory, with each argument of it that is checked."""
    found = []
    for name, made in PUBLIC.items():
        is_class = inspect.isclass(made) and not issubclass(made, BaseException | Warning)
        is_class = is_class and not getattr(made, "_is_protocol", False)
        # which solvers make at every solve, with what they have checked
        is_class = is_class and made is not solvers.FixedPointIteration
        if not is_class and name not in VECTORS:
            continue
        function = made.__init__ if is_class else made
        if inspect.ismethod(function) or not inspect.isfunction(function):
            continue
        hints = typing.get_type_hints(inspect.unwrap(function))
        for argument in inspect.signature(function).parameters:
            hint = hints.get(argument)
            if hint in (int, float, Sequence[int]):
                found.append((name, argument))
    return found


class Neither:
    """No number, and no sequence."""

    def __repr__(self) -> str:
        return "Neither()"


@pytest.mark.parametrize(("name", "argument"), arguments())
def test_every_number_and_every_shape_of_a_public_constructor_is_checked(name, argument):
    made = PUBLIC[name]
    function = made.__init__ if inspect.isclass(made) else made
    given = {}
    for other in list(inspect.signature(function).parameters.values()):
        required = other.default is other.empty and other.kind is not other.VAR_KEYWORD
        if other.name == argument or (required and other.name != "self"):
            given[other.name] = Neither()
    order = [argument, *(other for other in given if other != argument)]
    with pytest.raises(TypeError, match=rf"^{name}: {argument}: expected .*, got Neither\(\)"):
        made(**{each: given[each] for each in order})


@pytest.mark.parametrize("size", [np.int64(3), torch.tensor(3)], ids=["numpy", "torch"])
def test_integers_of_other_libraries_pass(size):
    assert LipschitzMLP(size, np.array([4, 4]))(torch.zeros(3)).shape == (3,)


@pytest.mark.parametrize("activation", [Tanh, lambda: Tanh(), partial(Tanh)])
def test_what_makes_an_activation_passes(activation):
    LipschitzMLP(2, [4], activation=activation)


@pytest.mark.parametrize("activation", ["relu", Tanh(), nn.ReLU])
def test_what_makes_no_activation_is_named(activation):
    message = r"^LipschitzMLP: activation: expected a class or function that makes an Activation"
    with pytest.raises(TypeError, match=message):
        LipschitzMLP(2, [4], activation=activation)


def test_classes_of_ones_own_check_their_own_arguments():
    class Own(LipschitzMLP):
        def __init__(self, input_dim: int, hidden_dims: int) -> None:
            super().__init__(input_dim, [hidden_dims])

    Own(2, hidden_dims=4)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'widths'"):
        Own(2, widths=4)


def test_an_annotation_that_tells_nothing_lets_everything_pass():
    assert expectation(typing.Any) is None
    assert expectation(int | typing.Any) is None

    @checked()
    def scale(by: float, of: typing.Any) -> float:
        return by

    assert scale(2, of="anything") == 2
    with pytest.raises(TypeError, match="scale: by: expected a number, got 'two'"):
        scale("two", of=1)
