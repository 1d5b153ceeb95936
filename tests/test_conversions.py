"""Flows work in float64, and raise an error in half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_resflow import conditional_residual_flow, residual_flow
from pyro_resflow.checkpoints import load, save
from pyro_resflow.distributions import Dequantized, as_signed
from pyro_resflow.flows import (
    ConvBlock,
    FlowPlusPlus,
    Glow,
    ImageFlow,
    IResNet,
    RealNVP,
    ResidualFlow,
)
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    ConvConditioner,
    GatedAttentionConditioner,
    GatedEncoder,
    LipschitzMLP,
    ResidualConditioner,
)
from pyro_resflow.precision import HalfPrecisionError
from pyro_resflow.transforms import (
    CouplingStep,
    Monotone,
    UniformDequantization,
    VariationalDequantization,
    initialize,
)

SHAPE = (2, 4, 4)
STEP = CouplingStep(GatedAttentionConditioner(8, 1))
FLOWS: dict[str, Callable[[], ImageFlow]] = {
    "residual_flow": lambda: ResidualFlow(SHAPE, (1,), network=ConvBlock(8), end_blocks=1),
    "monotone": lambda: ResidualFlow(SHAPE, (1,), network=ConvBlock(8), block=Monotone),
    "i_resnet": lambda: IResNet(SHAPE, blocks=(1,), network=ConvBlock(8)),
    "real_nvp": lambda: RealNVP(SHAPE, scales=1, network=ResidualConditioner(8, 1)),
    "glow": lambda: Glow(SHAPE, (1, 1), network=ConvConditioner(8)),
    "flow_plus_plus": lambda: FlowPlusPlus(SHAPE, ((1, 1),), step=STEP),
}
DEQUANTIZERS: dict[str, Callable[[], UniformDequantization]] = {
    "uniform": lambda: UniformDequantization(8),
    "variational": lambda: VariationalDequantization(
        SHAPE, 8, couplings=1, step=STEP, features=GatedEncoder(8, 1)
    ),
}
HALVES = [torch.float16, torch.bfloat16]


def images(number: int = 20) -> Tensor:
    return torch.randint(0, 8, (number, *SHAPE))


@pytest.mark.parametrize("dequantizer", sorted(DEQUANTIZERS))
@pytest.mark.parametrize("name", sorted(FLOWS))
def test_image_flows_in_double_score_learn_and_draw(name: str, dequantizer: str) -> None:
    flow, dequantize = FLOWS[name]().double(), DEQUANTIZERS[dequantizer]()
    if isinstance(dequantize, nn.Module):
        dequantize.double()
    distribution = Dequantized(flow.distribution(), dequantize, 8)
    log_prob = distribution.log_prob(images())
    assert log_prob.dtype == torch.float64
    log_prob.sum().backward()
    gradients = [each.grad for each in flow.parameters() if each.grad is not None]
    assert gradients
    assert all(each.dtype == torch.float64 and each.isfinite().all() for each in gradients)
    assert distribution.flow_dist.sample((2,)).dtype == torch.float64
    assert distribution.sample((2,)).dtype == torch.int64


def test_double_noise_is_drawn_in_double() -> None:
    """In float32 u would be one of 2^24 numbers, and v on a lattice."""
    seen: list[Tensor] = []

    class Recorded(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            seen.append(value)
            return super().log_prob(value)

    flow = FLOWS["real_nvp"]().double()
    base = Recorded(torch.zeros(32, dtype=torch.float64), 1.0).to_event(1)
    flow_dist = dist.TransformedDistribution(base, [flow])
    Dequantized(flow_dist, UniformDequantization(8), 8).log_prob(images())
    assert seen[0].dtype == torch.float64
    assert not torch.equal(seen[0], seen[0].float().double())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", sorted(FLOWS))
def test_image_flows_in_half_precision_are_refused_by_name(name: str, dtype: torch.dtype) -> None:
    flow = FLOWS[name]().to(dtype)
    distribution = Dequantized(flow.distribution(), UniformDequantization(8), 8)
    match = rf"expected parameters in float32 or float64, got {dtype}.*bf16-mixed"
    for use in (lambda: distribution.log_prob(images()), lambda: distribution.sample((2,))):
        with pytest.raises(HalfPrecisionError, match=match):
            use()
    flow.state_dict()  # to save it in little space is fine


@pytest.mark.parametrize("dtype", HALVES)
def test_vector_flows_in_half_precision_are_refused_by_name(dtype: torch.dtype) -> None:
    flow = residual_flow(3, 2, [8]).to(dtype)
    x = torch.randn(5, 3, dtype=dtype)
    conditional = conditional_residual_flow(3, 2, 2, [8]).to(dtype)
    conditioned = conditional.condition(torch.randn(5, 2, dtype=dtype))
    for use in (flow, flow.inv, conditioned, conditioned.inv, LipschitzMLP(3, [8]).to(dtype)):
        with pytest.raises(HalfPrecisionError, match="expected parameters in float32"):
            use(x)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_flow_loaded_in_half_precision_is_refused_and_works_again_in_single(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    flow = residual_flow(3, 2, [8], fast="density", logdet=Exact())
    x = torch.randn(20, 3)
    initialize(flow, x)
    save(flow, tmp_path / "flow.safetensors")
    loaded = load(tmp_path / "flow.safetensors", dtype=dtype)
    with pytest.raises(HalfPrecisionError, match="float32"):
        loaded.inv(x.to(dtype))
    save(loaded, tmp_path / "half.safetensors")
    again = load(tmp_path / "half.safetensors", dtype=torch.float32)
    torch.testing.assert_close(again.inv(x), flow.inv(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_images_of_wide_unsigned_integers_are_those_of_other_integers(dtype: torch.dtype) -> None:
    flow = FLOWS["flow_plus_plus"]()
    distribution = Dequantized(flow.distribution(), UniformDequantization(8), 8)
    pixels = images()
    initialize(flow, (pixels + 0.5) / 8)
    torch.manual_seed(1)
    expected = distribution.log_prob(pixels)
    torch.manual_seed(1)
    torch.testing.assert_close(distribution.log_prob(pixels.to(dtype)), expected)
    assert distribution.evaluate(pixels.to(dtype), batch_size=7).images == 20
    with pytest.raises(ValueError, match="got values from 0 to 8"):
        distribution.log_prob(torch.arange(9).repeat(32).reshape(9, *SHAPE).to(dtype))
    assert as_signed(pixels.to(dtype)).dtype == torch.int64
