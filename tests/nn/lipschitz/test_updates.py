"""Power iteration runs automatically, once after each change of a weight."""

from __future__ import annotations

import copy
import threading
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.nn import (
    Chain,
    InducedNorm,
    LipschitzConv2d,
    LipschitzLinear,
    LipschitzMLP,
    NonFiniteWeightError,
    OperatorNorm,
    SpectralNorm,
    update_norms,
)
from tests.networks import converged_norm
from tests.nn.layers import (
    CountingNorm,
    batch,
    layer_above_its_coefficient,
    operator_norm,
    redraw,
    train,
)


def test_power_iteration_runs_once_as_long_as_the_weight_stays() -> None:
    norm = CountingNorm()
    layer = LipschitzLinear(4, 5, norm)
    x = torch.randn(3, 4)
    for _ in range(2):
        layer(x).sum()
        Chain([layer]).linearize(x)
        update_norms(layer)
        layer.sigma()
        layer.lipschitz_bound()
        layer.state_dict()
        with torch.no_grad():
            layer(x)
        with torch.inference_mode():
            layer(x)
        layer.eval()
    assert norm.updates == 1


def test_power_iteration_runs_after_a_backward_pass_for_optimizers_that_write_through_data() -> (
    None
):
    norm = CountingNorm()
    layer = LipschitzLinear(4, 5, norm)
    for step in range(1, 4):
        layer(torch.randn(3, 4)).sum().backward()
        assert norm.updates == step
        layer.weight.data.add_(1.0)
    copied = copy.deepcopy(layer)
    copied(torch.randn(3, 4))
    assert norm.updates == 3
    assert copied.norm.updates == 4


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}])
def test_power_iteration_runs_after_each_optimizer_step(
    optimizer: type[torch.optim.Optimizer], options: dict[str, bool]
) -> None:
    norm = CountingNorm()
    layer = LipschitzLinear(4, 5, norm)
    steps = optimizer(layer.parameters(), lr=0.1, **options)
    for step in range(1, 4):
        layer(torch.randn(3, 4)).sum().backward()
        assert norm.updates == step
        steps.step()
        steps.zero_grad()


def test_power_iteration_runs_when_a_parameter_takes_the_place_of_the_weight() -> None:
    norm = CountingNorm()
    layer = LipschitzLinear(4, 5, norm)
    layer(torch.randn(3, 4))
    layer.weight = nn.Parameter(torch.randn(5, 4))
    layer(torch.randn(3, 4))
    assert norm.updates == 2


def test_earlier_pass_can_be_differentiated_after_a_later_one() -> None:
    layer = layer_above_its_coefficient("linear")
    first = layer.weight
    x = batch("linear")
    (expected,) = torch.autograd.grad(layer(x).square().sum(), first)
    out = layer(x).square().sum()
    layer.weight = nn.Parameter(torch.randn(5, 4))
    layer(x)
    (gradient,) = torch.autograd.grad(out, first)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


def test_change_of_the_orders_alone_is_noticed() -> None:
    norm = InducedNorm(3.0, 1.5)
    layer = LipschitzLinear(4, 5, norm)
    redraw(layer)
    with torch.no_grad():
        layer(torch.randn(3, 4))
        norm.codomain_logit.add_(1.0)
        fresh = LipschitzLinear(4, 5, norm)
        fresh.weight.copy_(layer.weight)
        # both stop within the norm's tolerance of 1e-3, from different vectors
        torch.testing.assert_close(
            layer.effective_weight(), fresh.effective_weight(), rtol=5e-3, atol=0
        )


def test_change_under_inference_mode_is_noticed() -> None:
    layer = LipschitzLinear(6, 6, converged_norm(0.9))
    layer(torch.randn(3, 6))
    with torch.inference_mode():
        redraw(layer)
        layer(torch.randn(3, 6))
    layer(torch.randn(3, 6)).sum().backward()
    assert operator_norm(layer).item() == pytest.approx(0.9, rel=1e-5)


@pytest.mark.parametrize("norm", [SpectralNorm(0.9), InducedNorm(coefficient=0.9)])
def test_layer_that_starts_at_zero_is_held_to_its_norm_later(norm: OperatorNorm) -> None:
    layer = LipschitzLinear(8, 8, norm, bias=False)
    nn.init.zeros_(layer.weight)
    train(layer, torch.randn(3, 8))  # moves nothing: the loss is least there
    assert not layer(torch.randn(3, 8)).any()
    redraw(layer)
    assert operator_norm(layer).item() == pytest.approx(0.9, rel=1e-3)


@pytest.mark.parametrize("gradients", [False, True])
def test_threads_share_one_update(gradients: bool) -> None:
    norm = CountingNorm()
    norm.pause = 0.02
    layer = LipschitzLinear(4, 5, norm)
    x = torch.randn(3, 4)
    start = threading.Barrier(6)
    outputs: list[tuple[int, Tensor]] = []

    def work() -> None:
        with torch.set_grad_enabled(gradients):
            for change in range(3):
                if start.wait() == 0:
                    redraw(layer)
                start.wait()
                outputs.append((change, layer(x).detach()))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(outputs) == 18
    assert norm.updates == 3
    for change in range(3):
        first, *others = [out for made, out in outputs if made == change]
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=0)


def test_layers_of_a_network_can_share_a_norm() -> None:
    norm = CountingNorm(0.9)
    net = LipschitzMLP(2, [4, 4], norm=norm)
    net(torch.randn(3, 2))
    assert norm.updates == 3


def test_norms_of_one_shape_are_measured_together() -> None:
    norm = CountingNorm(0.9)
    calls = mock.Mock(side_effect=norm.iterate_together)
    norm.iterate_together = calls
    net = nn.ModuleList(
        [LipschitzLinear(4, 5, norm) for _ in range(3)]
        + [LipschitzConv2d(2, 3, 3, (4, 4), norm) for _ in range(2)]
    )
    alone = copy.deepcopy(net)
    update_norms(net)
    assert calls.call_count == 2
    for together, layer in zip(net, alone, strict=True):
        assert together.is_current
        torch.testing.assert_close(together.sigma(), layer.sigma(), rtol=1e-5, atol=0)


def test_weights_measured_together_are_divided_as_if_alone() -> None:
    low, high = SpectralNorm(0.5), SpectralNorm(0.9)
    net = nn.ModuleList(
        [
            *(LipschitzLinear(*size, norm) for size in ((3, 5), (5, 3)) for norm in (low, high)),
            *(LipschitzConv2d(*channels, 3, (4, 4), low) for channels in ((1, 16), (16, 1))),
            *(LipschitzConv2d(*channels, 3, (4, 4), high) for channels in ((4, 6), (6, 4))),
            *(LipschitzConv2d(*channels, 1, (4, 4), low) for channels in ((3, 5), (5, 3))),
        ]
    ).double()
    with torch.no_grad():
        net[0].weight.mul_(1e-3)  # below its coefficient
        net[1].weight.zero_()
    update_norms(net)
    for together in net:
        alone = copy.deepcopy(together)  # with the vectors found, and nothing measured
        direction = torch.randn_like(together.weight)
        weights = [layer.effective_weight() for layer in (together, alone)]
        torch.testing.assert_close(*weights)
        pairs = zip(weights, (together, alone), strict=True)
        torch.testing.assert_close(
            *(torch.autograd.grad((w * direction).sum(), layer.weight)[0] for w, layer in pairs)
        )


def test_weight_that_is_not_finite_is_found_among_its_like() -> None:
    net = nn.ModuleList([LipschitzLinear(4, 5) for _ in range(3)])
    with torch.no_grad():
        net[1].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteWeightError, match="weight of LipschitzLinear"):
        update_norms(net)


@pytest.mark.parametrize(
    ("setting", "value"), [("coefficient", 0.5), ("tolerance", 1e-7), ("max_iterations", 300)]
)
def test_what_is_asked_of_a_norm_may_change(setting: str, value: float) -> None:
    norm = CountingNorm()
    layer = LipschitzLinear(4, 5, norm)
    redraw(layer)
    x = torch.randn(3, 4)
    layer(x)
    setattr(norm, setting, value)
    layer(x)
    layer(x)
    assert norm.updates == 2
    torch.testing.assert_close(
        operator_norm(layer).float(), torch.tensor(norm.coefficient), rtol=1e-3, atol=0
    )


def test_layers_for_images_of_different_sides_are_measured_apart() -> None:
    pair = nn.ModuleList([LipschitzConv2d(2, 2, 3, size) for size in ((4, 8), (8, 4), (2, 16))])
    for layer in pair:
        redraw(layer)
    update_norms(pair)
    for layer in pair:
        assert operator_norm(layer) == pytest.approx(0.98, rel=1e-3)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="x: expected images of 8x8 pixels"):
        LipschitzConv2d(2, 2, 3, (8, 8))(torch.randn(1, 2, 16, 16))
    assert LipschitzConv2d(2, 2, 1, (8, 8))(torch.randn(1, 2, 16, 16)).shape == (1, 2, 16, 16)


class HalvedNorm(SpectralNorm):
    """Contracts weights twice as far."""

    def measured(self, operators, us, vs):
        found = super().measured(operators, us, vs)
        return [each._replace(contraction=each.contraction / 2) for each in found]


class WiderNorm(SpectralNorm):
    """Leaves a margin of a tenth."""

    def iterate_together(self, operators, us, vs):
        return [(1.1 * u, v) for u, v in super().iterate_together(operators, us, vs)]


@pytest.mark.parametrize(("norm", "expected"), [(HalvedNorm, 0.45), (WiderNorm, 0.9 / 1.1)])
def test_a_norm_of_ones_own_measures_in_its_way(norm: type[SpectralNorm], expected: float) -> None:
    layer = LipschitzLinear(4, 5, norm(0.9))
    with torch.no_grad():
        layer.weight.mul_(30)
    for _ in range(2):
        found = torch.linalg.matrix_norm(layer.effective_weight(), 2)
        assert found.item() == pytest.approx(expected, rel=1e-4)
        layer.load_state_dict(layer.state_dict())


def test_a_norm_of_ones_own_marks_failures_without_an_error() -> None:
    layer = LipschitzLinear(4, 5, WiderNorm(0.9, tolerance=None))
    with torch.no_grad():
        layer.weight.fill_(torch.nan)
    assert layer.effective_weight().isnan().all()
