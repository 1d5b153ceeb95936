"""Use inside Pyro: SVI, guides, plates, the parameter store."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.nn import PyroModule
from torch import Tensor

from pyro_resflow import conditional_residual, conditional_residual_flow, residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import LipschitzLayer
from pyro_resflow.transforms import Compose, initialize
from tests.bases import standard

pytestmark = pytest.mark.usefixtures("fresh_store")


def banana(number: int) -> Tensor:
    x = torch.randn(number)
    return torch.stack([x, 0.5 * x.square() + 0.3 * torch.randn(number)], dim=1)


def test_density_estimation_by_svi_beats_the_gaussian() -> None:
    data, held_out = banana(500), banana(500)
    flow = residual_flow(2, 4, [32], fast="density")
    initialize(flow, data)

    def model(batch: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(batch)):
            pyro.sample("x", dist.TransformedDistribution(standard(2), [flow]), obs=batch)

    svi = SVI(model, lambda batch: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(150):
        svi.step(data)
    with torch.no_grad():
        exact = dist.TransformedDistribution(standard(2), [flow]).log_prob(held_out)
    gaussian = torch.distributions.MultivariateNormal(data.mean(0), torch.cov(data.T))
    gain = exact - gaussian.log_prob(held_out)
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def model() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=torch.tensor([1.0, 1.2, 0.8]))


def true_log_evidence() -> float:
    covariance = 8.0 + torch.eye(3) * 0.25
    observed = torch.tensor([1.0, 1.2, 0.8])
    return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(observed).item()


@pytest.mark.parametrize("name", ["Adam", "ClippedAdam", "AdagradRMSProp"])
def test_pyros_optimizers_leave_every_layer_a_contraction(name: str) -> None:
    flow = residual_flow(2, 1, [16], fast="density")
    data = banana(64)
    initialize(flow, data)

    def model(batch: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(batch)):
            pyro.sample("x", dist.TransformedDistribution(standard(2), [flow]), obs=batch)

    options = {"eta": 1.0} if name == "AdagradRMSProp" else {"lr": 0.3}
    svi = SVI(model, lambda batch: None, getattr(pyro.optim, name)(options), Trace_ELBO())
    for _ in range(5):
        svi.step(data)
    for layer in flow.modules():
        if isinstance(layer, LipschitzLayer):
            norm = torch.linalg.matrix_norm(layer.effective_weight().detach(), 2)
            assert norm < 1.001 * layer.norm.coefficient


def test_autoguide_reaches_the_evidence() -> None:
    guide = AutoNormalizingFlow(model, partial(residual_flow, blocks=6, hidden_dims=[16]))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(num_particles=16))
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    for _ in range(300):
        svi.step()
    found = torch.tensor([-svi.evaluate_loss() for _ in range(100)])
    error = found.std() / len(found) ** 0.5
    # at its optimum the bound lies just below the evidence, and never above beyond its noise
    assert found.mean() < true_log_evidence() + 4 * error
    assert found.mean() > true_log_evidence() - 0.5


@pytest.mark.parametrize("vectorize", [False, True])
def test_vectorized_and_looped_particles_train(vectorize: bool) -> None:
    guide = AutoNormalizingFlow(model, partial(residual_flow, blocks=1, hidden_dims=[8]))
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=vectorize, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    losses = [svi.step() for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(losses)))


def test_predictive_draws_from_the_guide() -> None:
    guide = AutoNormalizingFlow(model, partial(residual_flow, blocks=1, hidden_dims=[8]))
    guide()
    samples = Predictive(model, guide=guide, num_samples=7)()
    assert samples["z"].reshape(7, 2).isfinite().all()


def test_pyro_module_registers_every_parameter_of_a_flow_and_its_inverse() -> None:
    flow = residual_flow(2, 2, [8], fast="density")
    pyro.module("flow", flow)
    stored = {name for name in pyro.get_param_store() if name.startswith("flow$$$")}
    assert len(stored) == len(list(flow.parameters()))
    store = pyro.get_param_store()
    for name, parameter in flow.named_parameters():
        assert store[f"flow$$${name}"] is parameter


def test_attribute_of_a_pyro_module_is_trained() -> None:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.flow = residual_flow(2, 1, [8], fast="density")

        def forward(self, batch: Tensor) -> None:
            with pyro.plate("data", len(batch)):
                pyro.sample("x", dist.TransformedDistribution(standard(2), [self.flow]), obs=batch)

    module, data = Model(), banana(50)
    before = [parameter.clone() for parameter in module.parameters()]
    svi = SVI(module, lambda batch: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(2):
        svi.step(data)
    changed = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert all(changed)


def test_flow_as_a_prior_inside_and_outside_plates() -> None:
    flow = residual_flow(2, 1, [8])

    def prior() -> Tensor:
        d = dist.TransformedDistribution(standard(2), [flow])
        pyro.sample("alone", d)
        with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 4, dim=-1):
            return pyro.sample("z", d)

    trace = poutine.trace(prior).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].shape == (3, 4, 2)
    assert trace.nodes["z"]["log_prob"].shape == (3, 4)
    assert trace.nodes["alone"]["log_prob"].shape == ()


def test_conditional_flow_inside_and_outside_plates() -> None:
    transform = conditional_residual(2, 3, [8])
    flow = dist.conditional.ConditionalTransformedDistribution(standard(2), [transform])
    context = torch.randn(5, 3)

    def guide() -> None:
        pyro.module("flow", transform)
        with pyro.plate("data", 5):
            pyro.sample("z", flow.condition(context))
        pyro.sample("single", flow.condition(context[0]))

    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (5,)
    assert trace.nodes["single"]["log_prob"].shape == ()
    assert any(name.startswith("flow$$$") for name in pyro.get_param_store())


def test_conditional_flow_takes_the_batch_of_its_context_in_any_plate() -> None:
    transform = conditional_residual_flow(2, 3, 2, [8], logdet=Exact())
    conditional = dist.ConditionalTransformedDistribution(standard(2), [transform])
    contexts = torch.randn(4, 5, 3)
    assert conditional.condition(contexts).batch_shape == (4, 5)

    def guide() -> None:
        pyro.module("flow", transform)
        with pyro.plate("outer", 4, dim=-2):
            with pyro.plate("inner", 5, dim=-1):
                pyro.sample("each", conditional.condition(contexts))
                pyro.sample("row", conditional.condition(contexts[0]))
            pyro.sample("column", conditional.condition(contexts[:, :1]))
        pyro.sample("alone", conditional.condition(contexts[0, 0]))
        pyro.sample("event", conditional.condition(contexts[0]).to_event(1))

    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    expected = {"each": (4, 5), "row": (4, 5), "column": (4, 1), "alone": (), "event": ()}
    for name, shape in expected.items():
        assert trace.nodes[name]["log_prob"].shape == shape
        assert trace.nodes[name]["value"].isfinite().all()
    each = trace.nodes["each"]
    one = conditional.condition(contexts[2, 3])
    torch.testing.assert_close(
        each["log_prob"][2, 3], one.log_prob(each["value"][2, 3]), atol=1e-4, rtol=1e-4
    )
    stored = [name for name in pyro.get_param_store() if name.startswith("flow$$$")]
    assert len(stored) == len(list(transform.parameters()))


def test_conditional_density_by_svi_in_a_subsampled_plate_beats_one_without_context() -> None:
    context = 2 * torch.rand(600, 1) - 1
    data = torch.cat([context, -context], -1) + 0.3 * context.exp() * torch.randn(600, 2)
    flow = conditional_residual_flow(
        2, 1, 2, [16], context_hidden_dims=[16], fast="density", logdet=Exact()
    )
    conditional = dist.ConditionalTransformedDistribution(standard(2), [flow])

    def model() -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", 500, subsample_size=100) as index:
            pyro.sample("x", conditional.condition(context[index]), obs=data[index])

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO())
    for _ in range(80):
        svi.step()
    with torch.no_grad():
        fitted = conditional.condition(context[500:]).log_prob(data[500:])
    marginal = torch.distributions.MultivariateNormal(data.mean(0), torch.cov(data.T))
    gain = fitted - marginal.log_prob(data[500:])
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_scale_and_mask_weigh_each_sample_alone() -> None:
    flow = residual_flow(2, 2, [8], fast="density", logdet=Exact())
    data = banana(6)
    initialize(flow, data)
    mask = torch.tensor([True, False, True, True, False, True])

    def masked() -> None:
        with pyro.plate("data", 6), poutine.scale(scale=2.5), poutine.mask(mask=mask):
            pyro.sample("x", dist.TransformedDistribution(standard(2), [flow]), obs=data)

    loss = -poutine.trace(masked).get_trace().log_prob_sum()
    found = torch.autograd.grad(loss, list(flow.parameters()))
    alone = dist.TransformedDistribution(standard(2), [flow]).log_prob(data[mask])
    expected = torch.autograd.grad(-2.5 * alone.sum(), list(flow.parameters()))
    torch.testing.assert_close(found, expected)


def test_neutra_takes_gradients_with_a_frozen_guide() -> None:
    from pyro.infer.reparam import NeuTraReparam

    guide = AutoNormalizingFlow(
        model, partial(residual_flow, blocks=1, hidden_dims=[8], logdet=Exact())
    )
    guide()
    guide.requires_grad_(False)
    neutra = NeuTraReparam(guide)
    trace = poutine.trace(neutra.reparam(model)).get_trace()
    latent = trace.nodes["z_shared_latent"]["value"].detach().requires_grad_()
    conditioned = poutine.condition(neutra.reparam(model), data={"z_shared_latent": latent})
    (gradient,) = torch.autograd.grad(
        poutine.trace(conditioned).get_trace().log_prob_sum(), latent
    )
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_composition_with_pyros_transforms_trains() -> None:
    flow = Compose(
        [
            residual_flow(2, 1, [8], fast="density"),
            dist.transforms.affine_coupling(2),
            dist.transforms.permute(2),
        ]
    )
    data = banana(64)
    d = dist.TransformedDistribution(standard(2), [flow])
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = -d.log_prob(data).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
