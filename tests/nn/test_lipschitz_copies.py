"""Copies, files and moves of layers compute the same, and keep to the norm."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch

from pyro_resflow.nn import LipschitzLayer, LipschitzLinear
from tests.networks import converged_norm
from tests.nn.layers import (
    CountingNorm,
    batch,
    event_shape,
    layer_above_its_coefficient,
    operator_norm,
    redraw,
    train,
)


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
    clone.load_state_dict(layer.state_dict())
    assert operator_norm(clone).item() == pytest.approx(0.9, rel=1e-9)
    assert clone.norm.updates == 0
