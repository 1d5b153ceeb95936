"""Copied, saved and moved layers compute the same and keep their norm."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_resflow.nn import LipschitzLayer, LipschitzLinear, LipschitzMLP
from tests.networks import converged_norm
from tests.nn.layers import (
    LAYERS,
    CountingNorm,
    batch,
    event_shape,
    layer_above_its_coefficient,
    operator_norm,
    redraw,
    train,
)

State = dict[str, Tensor]


def by_pickle(layer: LipschitzLayer) -> LipschitzLayer:
    return pickle.loads(pickle.dumps(layer))


def by_torch_save(layer: LipschitzLayer) -> LipschitzLayer:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_state_dict(layer: LipschitzLayer) -> LipschitzLayer:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    clone = copy.deepcopy(layer)
    with torch.no_grad():
        for tensor in clone.state_dict().values():
            tensor.normal_()
    clone(torch.randn(3, *event_shape(layer), dtype=layer.weight.dtype))
    clone.load_state_dict(torch.load(file))
    return clone


def by_assigned_state_dict(layer: LipschitzLayer) -> LipschitzLayer:
    clone = copy.deepcopy(layer)
    redraw(clone)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    clone.load_state_dict(state, assign=True)
    return clone


def by_move(layer: LipschitzLayer) -> LipschitzLayer:
    return copy.deepcopy(layer).to(torch.device("cpu"), layer.weight.dtype)


Copied = Callable[[LipschitzLayer], LipschitzLayer]
COPIES: list[Copied] = [
    copy.deepcopy,
    by_pickle,
    by_torch_save,
    by_state_dict,
    by_assigned_state_dict,
    by_move,
]


@pytest.mark.parametrize("state", ["fresh", "trained", "moved", "trained, moved"])
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("name", ["linear", "convolution", "induced"])
def test_copy_computes_bit_for_bit_the_same(name: str, copied: Copied, state: str) -> None:
    layer = layer_above_its_coefficient(name)
    if "trained" in state:
        train(layer, batch(name))
    if "moved" in state:
        layer(batch(name))
        layer = layer.to(torch.float64)
    clone = copied(layer)
    x = batch(name, layer.weight.dtype)
    torch.testing.assert_close(clone(x), layer(x), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(clone(x), layer(x), rtol=0, atol=0)
    train(layer, x)
    train(clone, x)
    torch.testing.assert_close(clone(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("copied", COPIES)
def test_copy_whose_weight_changes_before_its_first_use_is_held_to_its_norm(
    copied: Copied,
) -> None:
    layer = LipschitzLinear(8, 8, converged_norm(0.9)).double()
    layer(torch.randn(3, 8, dtype=torch.float64))
    clone = copied(layer)
    redraw(clone)  # an average of weights is made so
    assert operator_norm(clone).item() == pytest.approx(0.9, rel=1e-9)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle])
def test_a_loaded_layer_keeps_its_vectors_when_it_is_copied_before_its_first_use(
    copied: Copied,
) -> None:
    layer = layer_above_its_coefficient("linear")
    layer(batch("linear"))
    loaded = LAYERS["linear"][0]()
    loaded.load_state_dict(layer.state_dict())
    clone = copied(loaded)
    assert clone.norm_state.key != loaded.norm_state.key
    x = batch("linear")
    torch.testing.assert_close(clone(x), layer(x), rtol=0, atol=0)
    torch.testing.assert_close((clone.u, clone.v), (layer.u, layer.v), rtol=0, atol=0)


def test_state_without_the_vectors_is_measured_anew() -> None:
    layer = LipschitzLinear(8, 8, converged_norm(0.9)).double()
    layer(torch.randn(3, 8, dtype=torch.float64))
    state = {"weight": torch.randn(8, 8, dtype=torch.float64), "bias": torch.zeros(8)}
    layer.load_state_dict(state, strict=False)
    assert operator_norm(layer).item() == pytest.approx(0.9, rel=1e-9)


def test_state_dict_of_a_weight_just_changed_brings_vectors_that_fit() -> None:
    layer = LipschitzLinear(8, 8, converged_norm(0.9)).double()
    redraw(layer)
    clone = LipschitzLinear(8, 8, CountingNorm(0.9)).double()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    clone.load_state_dict(state)
    assert operator_norm(clone).item() == pytest.approx(0.9, rel=1e-9)
    assert clone.norm.updates == 1  # to see whether they fit
    assert torch.equal(clone.u, state["u"])
    assert torch.equal(clone.v, state["v"])


def averaged(first: State, second: State) -> State:
    return {name: (first[name] + second[name]) / 2 for name in first}


def scaled(first: State, second: State) -> State:
    return {**first, "weight": 3 * first["weight"]}


def with_the_vectors_of_another(first: State, second: State) -> State:
    return {**first, "u": second["u"], "v": second["v"]}


def with_another_direction(first: State, second: State) -> State:
    """A larger singular value beside the one that the vectors belong to."""
    u, _, v = torch.linalg.svd(first["weight"].flatten(1))
    added = 40 * torch.outer(u[:, 1], v[1])
    return {**first, "weight": first["weight"] + added.view_as(first["weight"])}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "mixed", [averaged, scaled, with_the_vectors_of_another, with_another_direction]
)
@pytest.mark.parametrize("name", ["linear", "convolution", "induced"])
def test_state_with_vectors_of_other_weights_is_measured_anew(
    name: str, mixed: Callable[[State, State], State], assign: bool
) -> None:
    states = []
    for _ in range(2):
        layer = layer_above_its_coefficient(name)
        redraw(layer)
        states.append({key: tensor.clone() for key, tensor in layer.state_dict().items()})
    state = mixed(*states)
    layer.load_state_dict(state, assign=assign)
    fresh = LAYERS[name][0]()
    with torch.no_grad():
        fresh.weight.copy_(state["weight"])
    if name == "induced":  # whose iteration may end in another local maximum
        fresh.v.copy_(layer.v)
        fresh.u.copy_(layer.u)
    torch.testing.assert_close(
        layer.effective_weight(), fresh.effective_weight(), rtol=1e-3, atol=1e-5
    )


def test_average_of_two_trained_networks_is_a_contraction() -> None:
    nets = [LipschitzMLP(4, [16, 16]) for _ in range(2)]
    for net in nets:
        for layer in net:
            if isinstance(layer, LipschitzLayer):
                redraw(layer)
    states = [net.state_dict() for net in nets]
    nets[0].load_state_dict(averaged(*states))
    norms = [operator_norm(layer) for layer in nets[0] if isinstance(layer, LipschitzLayer)]
    torch.testing.assert_close(
        torch.stack(norms), torch.full((3,), 0.98).double(), rtol=1e-3, atol=0
    )
