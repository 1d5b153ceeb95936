"""Traces, which Pyro's compiled losses and NUTS record, give correct values at each call."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    HMC,
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    Trace_ELBO,
)
from pyro.ops.integrator import potential_grad
from torch import Tensor, nn

from pyro_resflow import conditional_residual, residual, residual_flow
from pyro_resflow.logdet import Exact, Frozen, Krylov, LogDetEstimator, NoTail
from pyro_resflow.nn import InducedNorm, why_autograd
from pyro_resflow.transforms import (
    ActNorm,
    Checkerboard,
    Compose,
    CouplingStep,
    Residual,
    initialize,
    monotone,
)
from tests.bases import standard

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore::torch.jit.TracerWarning"),
    pytest.mark.usefixtures("fresh_store"),
]

FROZEN = Krylov(4, tail=NoTail(), probe=Frozen())
COMPILED = [JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO]


def density(flow: dist.TransformModule) -> dist.TransformedDistribution:
    return dist.TransformedDistribution(standard(3), [flow])


def model_of(flow: dist.TransformModule) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("x", density(flow), obs=x)

    return model


def no_guide(x: Tensor) -> None:
    pass


def scale(flow: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(factor)


def gradients(flow: nn.Module) -> Tensor:
    found = torch.cat([parameter.grad.flatten() for parameter in flow.parameters()])
    flow.zero_grad()
    return found


@pytest.mark.parametrize("elbo", COMPILED)
@pytest.mark.parametrize("induced", [False, True])
def test_compiled_loss_and_gradient_follow_the_weights(elbo: type, induced: bool) -> None:
    norm = InducedNorm.chain(2) if induced else None
    for each in norm or []:
        each.tolerance = 1e-12  # after a backward pass it is measured again
    flow = residual_flow(3, 2, [8], fast="density", logdet=Exact(), norm=norm).double()
    x = torch.randn(20, 3).double()
    initialize(flow, x)
    model, compiled = model_of(flow), elbo(ignore_jit_warnings=True)
    for factor in (1.0, 20.0, 0.01):
        scale(flow, factor)
        loss = compiled.loss_and_grads(model, no_guide, x)
        found = gradients(flow)
        expected = Trace_ELBO().loss_and_grads(model, no_guide, x)
        assert loss == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(found, gradients(flow), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [residual, monotone])
def test_compiled_guide_is_the_guide_that_is_trained(make: Callable[..., nn.Module]) -> None:
    guide_flow = Compose([make(2, [8], logdet=Exact()), ActNorm(2, initialized=True)])
    base = dist.Normal(torch.zeros(200, 2), 1.0).to_event(1)

    def model() -> None:
        with pyro.plate("particles", 200):
            pyro.sample("z", dist.Normal(torch.tensor([1.0, -1.0]), 0.3).to_event(1))

    def guide() -> None:
        pyro.module("flow", guide_flow)
        with pyro.plate("particles", 200):
            pyro.sample("z", dist.TransformedDistribution(base, [guide_flow]))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.08}), JitTrace_ELBO(ignore_jit_warnings=True))
    losses = [svi.step() / 200 for _ in range(40)]
    plain = Trace_ELBO().loss(model, guide) / 200
    assert plain < losses[0] - 2
    assert abs(sum(losses[-5:]) / 5 - plain) < 0.3


def test_traced_estimates_draw_their_probes_anew_and_are_unbiased() -> None:
    flow = residual(3, [16], fast="density", logdet=Krylov(2)).requires_grad_(False)
    scale(flow, 3.0)
    x = torch.randn(1, 3)
    traced = torch.jit.trace(density(flow).log_prob, (x,), check_trace=False)
    found = torch.stack([traced(x) for _ in range(100)]).flatten()
    flow.transform.logdet = Exact()
    error = found.std() / 10
    assert error > 0
    assert ((found.mean() - density(flow).log_prob(x.clone())) / error).abs() < 4.5


def test_traced_gradient_is_that_of_the_estimate() -> None:
    flow = residual(3, [16], fast="density", logdet=Krylov(1, tail=NoTail()))
    flow.requires_grad_(False)
    scale(flow, 3.0)
    traced = torch.jit.trace(density(flow).log_prob, (torch.randn(1, 3),), check_trace=False)
    x = torch.randn(1, 3).double()
    flow.double()
    point = x.clone().requires_grad_()

    def at(point: Tensor) -> Tensor:
        torch.manual_seed(3)
        return traced(point).sum()

    (found,) = torch.autograd.grad(at(point), point)
    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    differences = torch.stack([(at(x + s) - at(x - s)) / 2e-6 for s in steps])
    # the estimate's gradient is unbiased and no derivative of its value; g's part of it is
    assert torch.cosine_similarity(found[0], differences, dim=0) > 0.8


@pytest.mark.parametrize("fast", ["sampling", "density"])
@pytest.mark.parametrize("logdet", [Exact(), FROZEN], ids=["exact", "frozen"])
def test_nuts_compiles_a_frozen_prior(fast: str, logdet: object) -> None:
    flow = residual_flow(3, 1, [8], fast=fast, logdet=logdet)
    if fast == "density":
        initialize(flow, torch.randn(50, 3))
    flow.requires_grad_(False).eval()
    kernel = NUTS(
        lambda: pyro.sample("z", density(flow)),
        jit_compile=True,
        ignore_jit_warnings=True,
        max_tree_depth=2,
    )
    MCMC(kernel, 2, 2, disable_progbar=True).run()
    z = torch.randn(3, requires_grad=True)
    energy, expected = kernel.potential_fn({"z": z}), -density(flow).log_prob(z)
    torch.testing.assert_close(energy, expected, rtol=1e-4, atol=1e-5)
    (found,) = torch.autograd.grad(energy, z)
    torch.testing.assert_close(found, torch.autograd.grad(expected, z)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kernel", [HMC, NUTS])
@pytest.mark.parametrize("fast", ["sampling", "density"])
def test_compiled_potentials_are_those_of_uncompiled_kernels(fast: str, kernel: type) -> None:
    flow = residual_flow(3, 1, [8], fast=fast, logdet=Exact()).double()
    if fast == "density":
        initialize(flow, torch.randn(50, 3, dtype=torch.float64))
    flow.requires_grad_(False).eval()
    base = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)

    def model() -> None:
        z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=torch.ones(3, dtype=torch.float64))

    def potential(compiled: bool) -> Callable[[dict[str, Tensor]], Tensor]:
        sampler = kernel(model, jit_compile=compiled, ignore_jit_warnings=True)
        sampler.setup(1)
        return sampler.potential_fn

    compiled, plain = potential(True), potential(False)
    for _ in range(3):
        point = {"z": torch.randn(3, dtype=torch.float64)}
        found, expected = (potential_grad(energy, point) for energy in (compiled, plain))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_trainable_flows_in_a_compiled_energy_are_told_to_freeze() -> None:
    flow = residual_flow(3, 1, [8], logdet=Exact())
    kernel = NUTS(
        lambda: pyro.sample("z", density(flow)), jit_compile=True, ignore_jit_warnings=True
    )
    with pytest.raises(ValueError, match=r"HMC and NUTS need: flow.requires_grad_\(False\)"):
        MCMC(kernel, 2, 2, disable_progbar=True).run()


def test_compiled_chains_of_one_seed_are_equal_and_uncompiled_ones_draw_otherwise() -> None:
    flow = residual_flow(3, 1, [8], logdet=Exact()).requires_grad_(False).eval()

    def draws(compiled: bool) -> Tensor:
        pyro.set_rng_seed(1)
        kernel = HMC(
            lambda: pyro.sample("z", density(flow)),
            num_steps=2,
            jit_compile=compiled,
            ignore_jit_warnings=True,
        )
        mcmc = MCMC(kernel, 3, 3, disable_progbar=True)
        mcmc.run()
        return mcmc.get_samples()["z"]

    first = draws(True)
    assert torch.equal(draws(True), first)
    assert not torch.equal(draws(False), first)


def test_gradients_reach_a_traced_context() -> None:
    flow = conditional_residual(2, 3, [8], logdet=Exact()).requires_grad_(False)
    x, context = torch.randn(5, 2), torch.randn(5, 3)

    def score(x: Tensor, context: Tensor) -> Tensor:
        return dist.TransformedDistribution(standard(2), [flow.condition(context)]).log_prob(x)

    traced = torch.jit.trace(score, (x, context), check_trace=False)
    other, at = torch.randn(5, 2), torch.randn(5, 3, requires_grad=True)
    found = traced(other, at)
    torch.testing.assert_close(found, score(other, at))
    expected = torch.autograd.grad(score(other, at).sum(), at)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), at), expected)


def test_inverse_of_a_mixture_coupling_iterates_at_every_call() -> None:
    step = CouplingStep()(Checkerboard((1, 2, 2)))
    initialize(step.inv, torch.randn(50, 1, 2, 2))
    step.requires_grad_(False).eval()
    scale(step, 1.5)
    traced = torch.jit.trace(lambda y: step.inv(y), (torch.randn(3, 1, 2, 2),), check_trace=False)
    y = 5 * torch.randn(3, 1, 2, 2)
    torch.testing.assert_close(step._call(traced(y)), y, rtol=1e-4, atol=1e-4)


def test_parameters_that_the_trace_does_not_know_are_named() -> None:
    flow = residual_flow(3, 1, [8], fast="density", logdet=Exact())
    initialize(flow, x := torch.randn(20, 3))
    with pytest.raises(ValueError, match=r"pyro.module.*flow.requires_grad_\(False\)"):
        torch.jit.trace(density(flow).log_prob, (x,), check_trace=False)
    density(flow).log_prob(x).sum().backward()  # the trace has ended


def test_flow_that_waits_for_data_is_named() -> None:
    flow = residual_flow(3, 1, [8], fast="density", logdet=Exact()).requires_grad_(False)
    with pytest.raises(ValueError, match="before tracing"):
        torch.jit.trace(density(flow).log_prob, (torch.randn(20, 3),), check_trace=False)


def test_second_derivatives_of_a_trace_are_refused() -> None:
    flow = residual(3, [8], fast="density", logdet=Exact()).requires_grad_(False)
    traced = torch.jit.trace(density(flow).log_prob, (torch.randn(1, 3),), check_trace=False)
    x = torch.randn(1, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="got a second one"):
        torch.autograd.grad(traced(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("logdet", [Exact(), FROZEN], ids=["Exact", "Krylov"])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.Softsign], ids=["in stages", "by autograd"])
def test_compiled_elbo_of_a_block_with_a_users_network(
    activation: type[nn.Module], logdet: LogDetEstimator
) -> None:
    net = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 3))
    assert (why_autograd(net) == "") is (activation is nn.SiLU)
    block = Residual(net, logdet=logdet)

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.ones(4, 3), 1).to_event(2))

    def guide() -> None:
        pyro.module("block", block)
        flow = dist.TransformedDistribution(standard(3).expand([4]), [block])
        pyro.sample("z", flow.to_event(1))

    results = []
    for elbo in (JitTrace_ELBO(ignore_jit_warnings=True), Trace_ELBO()):
        elbo.loss_and_grads(model, guide)  # the first call traces, and draws more
        net.zero_grad()
        pyro.set_rng_seed(0)
        loss = elbo.loss_and_grads(model, guide)
        results.append([torch.tensor(loss), *(p.grad.clone() for p in net.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
