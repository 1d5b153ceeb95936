"""The first batch initialises once, an explicit call again, and the flags are saved."""

import copy
import io
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from pyro_resflow import residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import InitializedConv2d, WeightNormConv2d, initialize_by
from pyro_resflow.nn.initialization import Moments
from pyro_resflow.transforms import ActNorm, BatchNorm, Compose, initialize

LAYERS = [InitializedConv2d, WeightNormConv2d]


def channels(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("std", [1.0, 0.1])
def test_first_batch_comes_out_with_mean_zero_and_the_standard_deviation(
    layer: type, std: float
) -> None:
    convolution, x = layer(3, 5, 3, std=std), 2 + 4 * torch.randn(10, 3, 6, 6)
    initialize_by(convolution, [x])
    y = channels(convolution(x))
    torch.testing.assert_close(y.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(1), torch.full((5,), std), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_zero_layer_learns(layer: type) -> None:
    convolution = layer(3, 5, 3, std=0.0)
    x = torch.randn(10, 3, 6, 6)
    initialize_by(convolution, [x])
    y = convolution(x)
    assert torch.equal(y, torch.zeros_like(y))
    optimizer = torch.optim.SGD(convolution.parameters(), lr=0.1)
    (y * torch.randn_like(y)).mean().backward()
    optimizer.step()
    assert convolution(x).std(0).min() > 0  # not by the bias alone


@pytest.mark.parametrize("layer", LAYERS)
def test_second_batch_leaves_the_layer_alone_until_asked(layer: type) -> None:
    convolution = layer(3, 5, 3)
    initialize_by(convolution, [torch.randn(10, 3, 6, 6)])
    before = copy.deepcopy(convolution.state_dict())
    x = 7 + 3 * torch.randn(10, 3, 6, 6)
    convolution(x)
    assert all(
        torch.equal(value, before[name]) for name, value in convolution.state_dict().items()
    )
    convolution.await_batch()
    initialize_by(convolution, [x])
    y = channels(convolution(x))
    torch.testing.assert_close(y.std(1), torch.ones(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_is_copied_pickled_and_saved_with_its_flag(layer: type) -> None:
    convolution = layer(3, 5, 3)
    x = torch.randn(10, 3, 6, 6)
    initialize_by(convolution, [x])
    y = convolution(x)
    file = io.BytesIO()
    torch.save(convolution, file)
    file.seek(0)
    loaded = layer(3, 5, 3)
    loaded.load_state_dict(convolution.state_dict())
    for other in (copy.deepcopy(convolution), torch.load(file, weights_only=False), loaded):
        torch.testing.assert_close(other(x), y)
        torch.testing.assert_close(other(9 * x[:1]), convolution(9 * x[:1]))


def test_weight_norm_gives_each_kernel_its_magnitude() -> None:
    convolution = WeightNormConv2d(3, 5, 3)
    initialize_by(convolution, [torch.randn(10, 3, 6, 6)])
    norms = convolution.kernel().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, convolution.magnitude)


@pytest.mark.filterwarnings("ignore:.*not initialised yet")
def test_an_act_norm_can_be_asked_again() -> None:
    norm = ActNorm(3)
    initialize_by(norm, [torch.randn(50, 3)])
    norm.await_batch()
    x = 3 + 4 * torch.randn(50, 3)
    assert torch.equal(norm(x), x)
    initialize_by(norm, [x])
    y = norm(x)
    torch.testing.assert_close(y.std(0), torch.ones(3))


@pytest.mark.parametrize("layer", LAYERS)
def test_single_sample_and_nan_are_refused(layer: type) -> None:
    with pytest.raises(ValueError, match="single sample"):
        initialize_by(layer(3, 5, 3), [torch.randn(1, 3, 6, 6)])
    with pytest.raises(ValueError, match="nan or infinite"):
        initialize_by(layer(3, 5, 3), [torch.full((2, 3, 6, 6), torch.nan)])


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_is_to_start_at_zero_is_zero_while_it_waits(layer: type) -> None:
    with pytest.warns(UserWarning, match="not initialised yet"):
        y = layer(3, 5, 3, std=0.0)(torch.randn(20, 3, 6, 6))
    assert torch.equal(y, torch.zeros(20, 5, 6, 6))


def test_moments_of_chunks_are_those_of_all() -> None:
    x = 100 + torch.randn(23, 4, 3, dtype=torch.float64)
    moments = Moments()
    for chunk in x.split(5):
        moments.add(chunk)
    features = channels(x)
    torch.testing.assert_close(moments.mean, features.mean(1))
    torch.testing.assert_close(moments.std, features.std(1))
    torch.testing.assert_close(moments.variance, features.var(1, correction=0))
    assert moments.samples == 23


@pytest.mark.parametrize("averaged_by", [None, get_ema_multi_avg_fn(0.9), get_swa_multi_avg_fn()])
def test_an_average_of_buffers_too_is_initialised(averaged_by: Any) -> None:
    flow = Compose([ActNorm(3)])
    average = AveragedModel(flow, use_buffers=True, multi_avg_fn=averaged_by)
    initialize(flow, 5 + torch.randn(64, 3))
    for _ in range(3):
        average.update_parameters(flow)
    x = torch.randn(4, 3)
    torch.testing.assert_close(average.module.inv(x), flow.inv(x))
    assert bool(average.module.parts[0].initialized)


@torch.no_grad()
def test_flows_made_in_inference_mode_are_initialised_outside_of_it() -> None:
    x = torch.randn(20, 3)
    made = {}
    for mode in (False, True):
        torch.manual_seed(0)
        with torch.inference_mode(mode):
            made[mode] = residual_flow(
                3, blocks=1, hidden_dims=[8], fast="density", logdet=Exact()
            )
        initialize(made[mode], x)
    torch.testing.assert_close(made[True].inv(x), made[False].inv(x))
    with torch.inference_mode():
        norms = [BatchNorm(3), WeightNormConv2d(3, 5, 3)]
    initialize(norms[0].inv, x)
    initialize_by(norms[1], [torch.randn(10, 3, 6, 6)])
    assert all(norm.initialized for norm in norms)
    norms[0](x + 1)  # in training mode its averages follow
    assert norms[0].mean.isfinite().all()
