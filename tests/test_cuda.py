"""On an accelerator, values agree with those of the CPU, and inverses converge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ConditionalTransformModule
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Transform

from benchmarks.gpu.agreement import WITHIN, check_recordings
from benchmarks.gpu.contenders import UNREAD
from benchmarks.gpu.graphed import record_on_cuda
from benchmarks.speed.workloads import Workload
from pyro_resflow import residual_flow
from pyro_resflow.checkpoints import load, save
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConvBlock, FlowPlusPlus, ResidualFlow
from pyro_resflow.guides import AutoResidualFlow
from pyro_resflow.hybrid import Hybrid
from pyro_resflow.logdet import AdaptiveKrylov, Exact, Frozen, Krylov, RussianRoulette
from pyro_resflow.nn import GatedAttentionConditioner, GatedEncoder, LipschitzConvNet
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov
from pyro_resflow.transforms import (
    CouplingStep,
    Residual,
    UniformDequantization,
    VariationalDequantization,
)
from tests.logdet.test_estimators import z_scores
from tests.transforms.conditional_registry import CONDITIONAL
from tests.transforms.registry import TRANSFORMS

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# A permutation of Pyro's, and images that transforms were conditioned on, stay on the CPU.
MOVABLE = sorted(
    TRANSFORMS.keys() - {"compose_with_pyros", "dequantization", "variational_dequantization"}
)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _own_params() -> None:
    pyro.clear_param_store()


def moved(transform: Transform) -> Transform:
    return transform.to(DEVICE) if isinstance(transform, nn.Module) else transform


def parameters_of(transform: object) -> list[Tensor]:
    return list(transform.parameters()) if isinstance(transform, nn.Module) else []


def passes(transform: Transform, x: Tensor) -> list[Tensor]:
    """The value, log-determinant, inverse, and the gradients of a function of these."""
    x = x.clone().requires_grad_()
    y, ladj = transform.call_and_ladj(x)
    back = transform.inv(y.detach().clone())
    wanted = [x, *parameters_of(transform)]
    gradients = torch.autograd.grad(
        y.square().sum() + ladj.sum() + back.sin().sum(), wanted, materialize_grads=True
    )
    return [each.detach().cpu() for each in (y, ladj, back, *gradients)]


@pytest.mark.parametrize("name", MOVABLE)
@pytest.mark.usefixtures("double")
def test_every_transform_agrees_with_the_cpu(name: str) -> None:
    case = TRANSFORMS[name]
    here, there = case.build(), moved(case.build())
    x = case.draw(7, *case.event_shape)
    for expected, found in zip(passes(here, x), passes(there, x.to(DEVICE)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(CONDITIONAL.keys() - {"conditional_compose"}))
@pytest.mark.usefixtures("double")
def test_every_conditional_transform_agrees_with_the_cpu(name: str) -> None:
    conditional: ConditionalTransformModule = CONDITIONAL[name](3, 2)
    x, context = torch.randn(7, 3), torch.randn(7, 2)
    with torch.no_grad():
        here = conditional.condition(context)
        y, ladj = here(x), here.log_abs_det_jacobian(x, here(x))
        conditional.to(DEVICE)
        there = conditional.condition(context.to(DEVICE))
        found = there(x.to(DEVICE))
        torch.testing.assert_close(found.cpu(), y)
        torch.testing.assert_close(
            there.log_abs_det_jacobian(x.to(DEVICE), found).cpu(), ladj, rtol=1e-6, atol=1e-7
        )
        torch.testing.assert_close(there.inv(found.clone()).cpu(), x, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("memory", ["recompute", "keep"])
@pytest.mark.parametrize("estimator", [AdaptiveKrylov, Krylov, RussianRoulette])
@pytest.mark.usefixtures("double")
def test_estimators_are_unbiased(estimator: type, memory: Any) -> None:
    net = LipschitzConvNet((2, 4, 4), (8, 8)).to(DEVICE)
    x = torch.randn(2, 2, 4, 4, device=DEVICE)
    exact = Exact()(net, x, 3)[1].detach()
    draws = []
    with torch.no_grad():
        for _ in range(40):
            _, logdet = estimator(memory=memory)(net, x.repeat(50, 1, 1, 1), 3)
            draws.append(logdet.reshape(50, 2).mean(0))
    assert z_scores(torch.stack(draws), exact).abs().max() < 4


def test_frozen_probes_are_the_same_each_time() -> None:
    net = LipschitzConvNet((2, 4, 4), (8, 8)).to(DEVICE)
    logdet, x = Krylov(probe=Frozen()), torch.randn(5, 2, 4, 4, device=DEVICE)
    with torch.no_grad():
        first, second = logdet(net, x, 3)[1], logdet(net, x, 3)[1]
    assert first.device.type == DEVICE
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("solver", [Anderson, FixedPoint, NewtonKrylov])
def test_inverses_of_images_converge(
    solver: type, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although torch convolves in TF32 unless told otherwise, and knows three digits then."""
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", allowed)
    block = Residual(LipschitzConvNet((8, 16, 16), (128, 128)), solver=solver()).to(DEVICE)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    y = torch.randn(16, 8, 16, 16, device=DEVICE, requires_grad=True)
    x = block.inv(y)
    (gradient,) = torch.autograd.grad(x.square().sum(), y)
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", False)
    with torch.no_grad():
        torch.testing.assert_close(x + block.net(x), y, rtol=0, atol=2e-5)
    reference = block.double()
    again = y.detach().double().requires_grad_()
    exact = torch.autograd.grad(reference.inv(again).square().sum(), again)[0]
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_are_trained_in_half_precision(dtype: torch.dtype) -> None:
    flow = ResidualFlow((1, 8, 8), (1, 1), network=ConvBlock(16), end_blocks=1).to(DEVICE)
    d = Dequantized(flow.distribution(), UniformDequantization(256), 256)
    images = torch.randint(256, (32, 1, 8, 8), device=DEVICE)
    with torch.no_grad():
        full = d.bits_per_dim(images).mean()
    with torch.autocast(DEVICE, dtype=dtype):
        bits = d.bits_per_dim(images).mean()
    bits.backward()
    assert (bits - full).abs() < 0.2
    assert all(bool(parameter.grad.isfinite().all()) for parameter in flow.parameters())
    assert d.sample((3,)).device.type == DEVICE


def test_flow_plus_plus_with_variational_dequantization() -> None:
    step = CouplingStep(GatedAttentionConditioner(8, 1))
    flow = FlowPlusPlus((1, 8, 8), ((0, 1), (1, 1)), step=step).to(DEVICE)
    dequantization = VariationalDequantization(
        (1, 8, 8), 8, 1, step=step, features=GatedEncoder(4, 1)
    ).to(DEVICE)
    d = Dequantized(flow.distribution(), dequantization, 8, num_samples=3)
    images = torch.randint(8, (16, 1, 8, 8), device=DEVICE)
    loss = -d.log_prob(images).mean()
    loss.backward()
    assert bool(loss.isfinite())
    assert d.sample((3,)).device.type == DEVICE


def test_hybrids_classify() -> None:
    flow = ResidualFlow((1, 8, 8), (1, 1), network=ConvBlock(16), end_blocks=0, alpha=None)
    hybrid = Hybrid(flow, num_classes=3, hidden_channels=8).to(DEVICE)
    log_prob, logits = hybrid(torch.rand(16, 1, 8, 8, device=DEVICE))
    (log_prob.sum() + logits.sum()).backward()
    assert log_prob.device.type == logits.device.type == DEVICE


def model() -> None:
    zero = torch.zeros((), device=DEVICE)
    scale = pyro.sample("scale", dist.LogNormal(zero, 0.5))
    with pyro.plate("data", 4, device=DEVICE):
        local = pyro.sample("local", dist.Normal(zero, scale))
        pyro.sample("obs", dist.Normal(local, 0.5), obs=torch.arange(4.0, device=DEVICE))


def test_a_guide_is_trained() -> None:
    guide = AutoResidualFlow(model, blocks=2, hidden_dims=[8])
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step() for _ in range(3)]
    assert all(torch.tensor(losses).isfinite())
    assert guide()["local"].device.type == DEVICE
    assert guide.quantiles([0.5])["local"].device.type == DEVICE


def test_a_flow_is_a_prior_in_nuts() -> None:
    flow = residual_flow(2, 2, [8], logdet=Exact()).to(DEVICE)

    def with_prior() -> None:
        base = dist.Normal(torch.zeros(2, device=DEVICE), 1.0).to_event(1)
        z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(2, device=DEVICE))

    mcmc = MCMC(NUTS(with_prior), num_samples=3, warmup_steps=3, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["z"].device.type == DEVICE


def test_a_flow_is_saved_and_loaded(tmp_path: Path) -> None:
    flow = residual_flow(3, 2, [8], fast="density", logdet=Exact()).to(DEVICE)
    save(flow, tmp_path / "flow.safetensors")
    here, there = (load(tmp_path / "flow.safetensors", device=d) for d in ("cpu", DEVICE))
    x = torch.randn(5, 3)
    with torch.no_grad():
        expected, found = here.inv(x), there.inv(x.to(DEVICE))
        assert found.device.type == DEVICE
        torch.testing.assert_close(found, flow.inv(x.to(DEVICE)))
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


IMAGES = Workload("images", (1, 8, 8), (16, 16), blocks=2, batch=8)
VECTORS = Workload("vectors", (12,), (16,), blocks=2, batch=8)


@pytest.mark.parametrize("workload", [IMAGES, VECTORS], ids=lambda each: each.name)
def test_steps_recorded_as_graphs_train_as_eager_ones(workload: Workload) -> None:
    assert check_recordings(workload, torch.device(DEVICE), record_on_cuda) <= WITHIN


@pytest.mark.parametrize("workload", [IMAGES, VECTORS], ids=lambda each: each.name)
def test_a_training_step_does_not_synchronise(workload: Workload) -> None:
    model = UNREAD.build(workload).to(DEVICE)
    step = UNREAD.training(model, workload.data().to(DEVICE))
    for _ in range(3):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
