from __future__ import annotations

import copy
import io
import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_resflow.nn import (
    Chain,
    InducedNorm,
    LipschitzConv2d,
    LipschitzLayer,
    LipschitzLinear,
    LipschitzMLP,
    NonFiniteWeightError,
    OperatorNorm,
    SpectralNorm,
    update_norms,
)
from tests.derivatives import central_differences
from tests.networks import converged_norm


class CountingNorm(SpectralNorm):
    """Counts power iterations; ``pause`` makes each of them take a while."""

    updates = 0
    pause = 0.0

    def iterate_together(self, operators, us, vs):
        self.updates += len(operators)
        time.sleep(self.pause)
        return super().iterate_together(operators, us, vs)


MakeLayer = Callable[[], LipschitzLayer]
LAYERS: dict[str, tuple[MakeLayer, tuple[int, ...]]] = {
    "linear": (lambda: LipschitzLinear(4, 5), (4,)),
    "convolution": (lambda: LipschitzConv2d(2, 3, 3, (3, 4)), (2, 3, 4)),
    "induced": (lambda: LipschitzLinear(4, 5, InducedNorm(3.0, 1.5)), (4,)),
    "induced convolution": (
        lambda: LipschitzConv2d(2, 3, 3, (3, 4), InducedNorm(1.5, 3.0)),
        (2, 3, 4),
    ),
}


def layer_above_its_coefficient(name: str) -> LipschitzLayer:
    layer = LAYERS[name][0]()
    with torch.no_grad():
        layer.weight.mul_(5)
    return layer


def batch(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, *LAYERS[name][1], dtype=dtype)


def operator_norm(layer: LipschitzLayer) -> Tensor:
    """The largest singular value of a layer's effective map, from its matrix."""
    weight = layer.effective_weight().detach().double()
    operator = layer.operator(weight)
    units = torch.eye(math.prod(operator.domain), dtype=torch.float64)
    images = operator.apply(units.unflatten(1, operator.domain))
    return torch.linalg.matrix_norm(images.flatten(1), 2)


def train(layer: LipschitzLayer, x: Tensor) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    optimizer.zero_grad()
    layer(x).square().sum().backward()
    optimizer.step()


@torch.no_grad()
def redraw(layer: LipschitzLayer) -> None:
    layer.weight.normal_().mul_(5)


# --- power iteration runs by itself -------------------------------------------------------------


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


# --- the effective weight -----------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_weight_below_the_coefficient_passes_unchanged(name: str) -> None:
    layer = LAYERS[name][0]()
    with torch.no_grad():
        layer.weight.mul_(0.05)
    assert layer.sigma() < 0.98
    torch.testing.assert_close(layer.effective_weight(), layer.weight, rtol=0, atol=0)


@pytest.mark.parametrize("coefficient", [0.3, 0.97])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_weight_above_the_coefficient_is_brought_down_to_it(kind: str, coefficient: float) -> None:
    norm = converged_norm(coefficient)
    if kind == "linear":
        layer = LipschitzLinear(7, 5, norm).double()
    else:
        layer = LipschitzConv2d(2, 3, 3, (4, 5), norm).double()
    redraw(layer)
    assert operator_norm(layer).item() == pytest.approx(coefficient, rel=1e-9)
    assert layer.lipschitz_bound().item() == pytest.approx(coefficient, rel=1e-3)


def test_default_power_iteration_keeps_random_layers_certified() -> None:
    for width in (3, 30, 100):
        layer = LipschitzLinear(width, width)
        redraw(layer)
        assert 0.97 < layer.lipschitz_bound() < 1


@pytest.mark.parametrize("of", ["weight", "orders"])
@pytest.mark.parametrize("name", ["linear", "convolution", "induced"])
def test_gradient_of_the_effective_weight_is_that_of_finite_differences(
    name: str, of: str
) -> None:
    layer = layer_above_its_coefficient(name).double()
    layer.norm.tolerance, layer.norm.max_iterations = 1e-15, 2000
    parameters = [layer.weight] if of == "weight" else list(layer.norm.parameters())
    direction = torch.randn_like(layer.weight)

    def value() -> Tensor:
        return (layer.effective_weight() * direction).sum()

    for parameter in parameters:
        (gradient,) = torch.autograd.grad(value(), parameter)
        indices, differences = central_differences(value, parameter)
        # differences are good to step^2 and to rounding / step, 1e-10 both
        torch.testing.assert_close(gradient.view(-1)[indices], differences, rtol=1e-6, atol=1e-8)


def test_weights_are_seen_alike_with_and_without_gradients() -> None:
    layer = layer_above_its_coefficient("convolution")
    with torch.no_grad():
        cached = layer.effective_weight()
    torch.testing.assert_close(layer.effective_weight(), cached, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_leaves_the_norm_in_full_precision(name: str) -> None:
    layer = layer_above_its_coefficient(name)
    expected = layer.effective_weight()
    redraw(clone := copy.deepcopy(layer))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            clone.weight.copy_(layer.weight)
        assert clone(batch(name)).dtype == torch.bfloat16
        found = clone.effective_weight()
    assert found.dtype == torch.float32
    # both stop within the norm's tolerance of 1e-5; bfloat16 would be off by 4e-3
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_weight_that_is_not_finite_is_refused(value: float) -> None:
    layer = LipschitzLinear(4, 5)
    with torch.no_grad():
        layer.weight[2, 3] = value
    with pytest.raises(NonFiniteWeightError, match=r"weight of LipschitzLinear .*\(5, 4\)"):
        layer(torch.randn(3, 4))
    assert set(layer.state_dict()) == {"weight", "bias", "u", "v"}  # it can be saved all the same


# --- copies, files, moves -----------------------------------------------------------------------


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
    clone(torch.randn(3, *_event_shape(layer), dtype=layer.weight.dtype))
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


def _event_shape(layer: LipschitzLayer) -> tuple[int, ...]:
    if isinstance(layer, LipschitzConv2d):
        return (layer.weight.shape[1], *layer.input_size)
    return (layer.weight.shape[1],)


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


# --- where layers live --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "convolution", "induced"])
def test_functional_call_uses_the_tensors_given(name: str) -> None:
    layer = layer_above_its_coefficient(name).double()
    layer.norm.tolerance, layer.norm.max_iterations = 1e-15, 2000
    x = batch(name, torch.float64)
    expected = layer(x)
    u, v = layer.u.clone(), layer.v.clone()
    given = (3 * layer.weight).detach().requires_grad_()
    found = torch.func.functional_call(layer, {"weight": given}, x)
    torch.testing.assert_close(found, expected)  # thrice the weight has the same direction
    (gradient,) = torch.autograd.grad(found.square().sum(), given)
    (own,) = torch.autograd.grad(expected.square().sum(), layer.weight)
    torch.testing.assert_close(gradient, own / 3)
    torch.testing.assert_close((layer.u, layer.v), (u, v), rtol=0, atol=0)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("fresh", [False, True])
def test_functional_call_composes_with_vmap_and_grad(fresh: bool) -> None:
    layer = LipschitzLinear(4, 5, converged_norm(0.9)).double()
    redraw(layer)
    x = batch("linear", torch.float64)
    if not fresh:
        layer(x)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, values, sample).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    (whole,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    torch.testing.assert_close(per_sample["weight"].sum(0), whole)


@pytest.fixture
def _double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double_by_default")
@pytest.mark.parametrize("name", LAYERS)
def test_default_dtype_is_followed(name: str) -> None:
    layer = layer_above_its_coefficient(name)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    layer(torch.randn(3, *LAYERS[name][1])).sum().backward()
    assert layer.weight.grad.dtype == torch.float64


@pytest.mark.parametrize("name", LAYERS)
def test_meta_device_gives_shapes(name: str) -> None:
    expected = LAYERS[name][0]()(batch(name)).shape
    with torch.device("meta"):
        layer = LAYERS[name][0]()
        out = layer(torch.empty(3, *LAYERS[name][1]))
    assert out.is_meta
    assert out.shape == expected


def test_layer_made_on_the_meta_device_can_be_filled_later() -> None:
    with torch.device("meta"):
        layer = LipschitzLinear(8, 8, converged_norm(0.9))
        layer(torch.empty(3, 8))
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    redraw(layer)
    assert operator_norm(layer).item() == pytest.approx(0.9, rel=1e-5)


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


# --- the map itself -----------------------------------------------------------------------------


def test_linear_layer_is_affine_in_any_batch_shape() -> None:
    layer = LipschitzLinear(4, 5)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x), x @ layer.effective_weight().t() + layer.bias)


def test_convolution_pads_with_zeros_and_keeps_the_size() -> None:
    layer = LipschitzConv2d(2, 3, 5, (4, 6))
    x = torch.randn(7, 2, 4, 6)
    expected = F.conv2d(F.pad(x, [2] * 4), layer.effective_weight(), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape == (7, 3, 4, 6)


@pytest.mark.parametrize(
    "layer",
    [LipschitzLinear(3, 3, bias=False), LipschitzConv2d(3, 3, 1, (2, 2), bias=False)],
    ids=["linear", "convolution"],
)
def test_bias_can_be_left_out(layer: LipschitzLayer) -> None:
    x = torch.randn(2, *_event_shape(layer))
    assert layer.bias is None
    torch.testing.assert_close(layer(-x), -layer(x))
    torch.testing.assert_close(Chain([layer]).dual(x, x[None])[1][0], layer(x))


@pytest.mark.parametrize("kernel_size", [0, 2, 4])
def test_even_kernel_is_refused(kernel_size: int) -> None:
    with pytest.raises(ValueError, match="kernel_size"):
        LipschitzConv2d(2, 3, kernel_size, (4, 4))


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


def test_weight_that_is_not_finite_is_found_among_its_like() -> None:
    net = nn.ModuleList([LipschitzLinear(4, 5) for _ in range(3)])
    with torch.no_grad():
        net[1].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteWeightError, match="weight of LipschitzLinear"):
        update_norms(net)
