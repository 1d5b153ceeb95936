"""Scalings are multiplied into the neighbouring affine maps."""

from __future__ import annotations

import torch

from pyro_resflow.nn import Chain, CLipSwish, CPila, LipschitzMLP, LipSwish, Shift


def kinds(net: Chain) -> list[str]:
    return [type(stage).__name__ for stage in net.stages()]


def test_gains_of_activations_are_multiplied_into_the_affine_maps() -> None:
    assert kinds(LipschitzMLP(3, [6, 4])) == ["Affine", "Core"] * 2 + ["Affine"]
    # the first activation's input gain has no map in front
    assert kinds(LipschitzMLP(3, [6], preactivation=True)) == [
        "Scale", "Core", "Affine", "Core", "Affine"
    ]  # fmt: skip
    # without a shift the gain comes before the features double
    assert kinds(LipschitzMLP(3, [6], activation=CLipSwish)) == [
        "Affine", "BothSigns", "Core", "Affine"
    ]  # fmt: skip
    assert kinds(LipschitzMLP(3, [6], activation=CPila)) == [
        "Affine", "BothSigns", "Core", "Affine"
    ]  # fmt: skip


def test_gains_pass_through_shifts() -> None:
    chain = LipschitzMLP(3, [6])
    shifted = Chain([chain[0], Shift(torch.randn(5, 6)), chain[1], chain[2]])
    assert kinds(shifted) == ["Affine", "Translate", "Core", "Affine"]
    x = torch.randn(5, 3)
    expected = chain[2](chain[1](chain[0](x) + shifted[1].shift))
    torch.testing.assert_close(shifted(x), expected)


def test_adjacent_scalings_are_one() -> None:
    net = Chain([LipSwish(), LipSwish()])
    assert kinds(net) == ["Scale", "Core", "Scale", "Core", "Scale"]
    x = torch.randn(5, 3)
    torch.testing.assert_close(net(x), net[1](net[0](x)))
