"""Residual flows among Pyro's own transforms, and under Pyro's effect handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro import poutine
from pyro.distributions.conditional import ConditionalComposeTransformModule
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.distributions import Transform

from pyro_resflow import conditional_residual, conditional_residual_flow, residual, residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.transforms import (
    ActNorm,
    Compose,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalInverse,
    Inverse,
)


@pytest.fixture(autouse=True)
def _double_precision_and_a_fresh_store() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)


def noise(size: int) -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(size), 1.0).to_event(1)


def log_det_by_autograd(transform: Transform, x: Tensor) -> Tensor:
    """log|dy/dx| of a vector x."""
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v[None])[0], x)
    return torch.linalg.slogdet(jacobian)[1]


# Pyro's transforms and ours in one distribution


def transforms() -> list[Transform]:
    """Each of Pyro's ways to chain, and both fast directions of ours."""
    return [
        T.iterated(2, residual, 4, [8], logdet=Exact()),
        T.Permute(torch.tensor([2, 0, 3, 1])),
        T.spline_coupling(4, hidden_dims=[8], count_bins=4),
        residual_flow(4, 1, [8], logdet=Exact()),
        T.affine_coupling(4, hidden_dims=[8]),
        residual(4, [8], fast="density", logdet=Exact()),
        T.spline(4, count_bins=4),
    ]


def flows() -> list[Transform]:
    return [residual_flow(4, 1, [8], logdet=Exact()) for _ in range(2)]


CHAINS = {
    "list": transforms,
    "compose_transform_module": lambda: [dist.ComposeTransformModule(transforms())],
    "our_compose": lambda: [Compose(transforms())],
    "inverse_of_our_compose": lambda: [Inverse(Compose(transforms()))],
    "inverse_of_each": lambda: [Inverse(t) for t in transforms()],
    "iterated_flows": lambda: [T.iterated(2, residual_flow, 4, 1, [8], logdet=Exact())],
}


def modules(parts: list[object]) -> torch.nn.ModuleList:
    """Those of the parts that are modules."""
    return torch.nn.ModuleList(part for part in parts if isinstance(part, torch.nn.Module))


@pytest.mark.parametrize("make", CHAINS.values(), ids=list(CHAINS))
def test_inverse_and_log_density_of_a_mixture_of_transforms(
    make: Callable[[], list[Transform]],
) -> None:
    chain = make()
    whole = torch.distributions.ComposeTransform(chain)
    x = 0.7 * torch.randn(6, 4)
    y = whole(x).detach()
    assert (whole.inv(y.clone()) - x).abs().max() < 1e-6
    log_det = torch.stack([log_det_by_autograd(whole, row) for row in x])
    density = dist.TransformedDistribution(noise(4), chain)
    torch.testing.assert_close(
        density.log_prob(y.clone()), noise(4).log_prob(x) - log_det, rtol=1e-5, atol=1e-5
    )
    assert density.log_prob(density.sample((3, 2))).shape == (3, 2)


@pytest.mark.parametrize("name", CHAINS)
def test_every_parameter_of_a_mixture_is_registered_and_trained(name: str) -> None:
    chain, data = CHAINS[name](), torch.randn(32, 4) @ torch.randn(4, 4) / 2
    registered = modules(chain)

    def model() -> None:
        pyro.module("flow", registered)
        # alone, Pyro's transforms find the last result of this very tensor again, and its graph
        points = data.clone() if name in ("list", "compose_transform_module") else data
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.TransformedDistribution(noise(4), chain), obs=points)

    alone = modules(flows() if name == "iterated_flows" else transforms())
    before = {name: p.detach().clone() for name, p in registered.named_parameters()}
    assert len(before) == len(list(alone.parameters()))
    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    losses = [svi.step() for _ in range(10)]
    assert losses[-1] < losses[0]
    assert set(pyro.get_param_store()) == {f"flow$$${name}" for name in before}
    assert all(not torch.equal(before[n], p) for n, p in registered.named_parameters())


# Conditional ones


def conditional_transforms() -> list[object]:
    return [
        conditional_residual(3, 2, [8], logdet=Exact()),
        T.Permute(torch.tensor([2, 0, 1])),
        T.conditional_spline(3, 2, [8], count_bins=4),
        ConditionalAffine(3, 2, [8]),
        ActNorm(3, initialized=True),
        T.spline_coupling(3, hidden_dims=[8], count_bins=4),
        conditional_residual_flow(
            3, 2, 1, [8], context_hidden_dims=[8], fast="density", logdet=Exact()
        ),
        T.conditional_affine_coupling(3, 2, hidden_dims=[8]),
    ]


CONDITIONAL_CHAINS = {
    "list": conditional_transforms,
    "pyros_compose": lambda: [ConditionalComposeTransformModule(conditional_transforms())],
    "pyros_compose_with_cache": lambda: [
        ConditionalComposeTransformModule(conditional_transforms(), cache_size=1)
    ],
    "our_compose": lambda: [ConditionalCompose(conditional_transforms())],
    "pyros_inverse": lambda: [ConditionalComposeTransformModule(conditional_transforms()).inv],
    "our_inverse": lambda: [ConditionalInverse(ConditionalCompose(conditional_transforms()))],
}


@pytest.fixture(params=CONDITIONAL_CHAINS)
def conditional_chain(request: pytest.FixtureRequest) -> list[object]:
    chain = CONDITIONAL_CHAINS[request.param]()
    with torch.no_grad():  # the first batch sets the scales of the ActNorms
        distribution = dist.ConditionalTransformedDistribution(noise(3), chain)
        distribution.condition(torch.randn(50, 2)).log_prob(torch.randn(50, 3))
        distribution.condition(torch.randn(50, 2)).sample()
    return chain


def test_conditional_mixture_has_the_inverse_and_log_density_of_its_context(
    conditional_chain: list[object],
) -> None:
    context = torch.randn(6, 2)
    conditional = dist.ConditionalTransformedDistribution(noise(3), conditional_chain)
    density = conditional.condition(context)
    x = 0.7 * torch.randn(6, 3)
    whole = torch.distributions.ComposeTransform(density.transforms)
    y = whole(x).detach()
    assert density.batch_shape == (6,)
    assert (whole.inv(y.clone()) - x).abs().max() < 1e-6
    rows = (
        torch.distributions.ComposeTransform(conditional.condition(c[None]).transforms)
        for c in context
    )
    log_det = torch.stack([log_det_by_autograd(t, row) for t, row in zip(rows, x, strict=True)])
    torch.testing.assert_close(
        density.log_prob(y.clone()), noise(3).log_prob(x) - log_det, rtol=1e-5, atol=1e-5
    )


def test_every_parameter_of_a_conditional_mixture_is_registered_and_trained(
    conditional_chain: list[object],
) -> None:
    context = torch.randn(32, 2)
    data = context.repeat(1, 2)[:, :3] + 0.3 * torch.randn(32, 3)
    registered = modules(conditional_chain)

    def model() -> None:
        pyro.module("flow", registered)
        conditional = dist.ConditionalTransformedDistribution(noise(3), conditional_chain)
        with pyro.plate("data", 32, subsample_size=16) as index:
            pyro.sample("x", conditional.condition(context[index]), obs=data[index])

    alone = modules(conditional_transforms())
    before = {name: p.detach().clone() for name, p in registered.named_parameters()}
    assert len(before) == len(list(alone.parameters()))
    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    for _ in range(3):
        assert torch.isfinite(torch.tensor(svi.step()))
    assert set(pyro.get_param_store()) == {f"flow$$${name}" for name in before}
    assert all(not torch.equal(before[n], p) for n, p in registered.named_parameters())


# Under effect handlers


class Prior:
    """A density of eight points: a flow, or a conditional flow at their contexts."""

    def __init__(self, conditional: bool) -> None:
        self.contexts = torch.randn(8, 2)
        self.flow = (
            conditional_residual_flow(3, 2, 1, [8], context_hidden_dims=[8], logdet=Exact())
            if conditional
            else residual_flow(3, 2, [8], logdet=Exact())
        )
        self.conditional = dist.ConditionalTransformedDistribution(noise(3), [self.flow])

    def at(self, index: Tensor) -> dist.TorchDistribution:
        """The distribution of the points of these numbers."""
        return self.conditional.condition(self.contexts[index])

    def model(self, subsample: Tensor | None = None) -> Tensor:
        """Points, each seen through noise."""
        pyro.module("flow", self.flow)
        with pyro.plate("points", 8, subsample=subsample) as index:
            z = pyro.sample("z", self.at(index))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=self.contexts[index, 0])
        return z

    def log_density(self, z: Tensor) -> Tensor:
        """Of each point, shape ``(8,)``, and of what is seen of it, in one tensor (2, 8)."""
        everywhere = torch.arange(8)
        seen = dist.Normal(z.sum(-1), 1.0).log_prob(self.contexts[:, 0])
        return torch.stack([self.at(everywhere).log_prob(z), seen])


@pytest.fixture(params=["flow", "conditional flow"])
def prior(request: pytest.FixtureRequest) -> Prior:
    return Prior(request.param == "conditional flow")


def test_condition_scores_the_value_it_puts_in(prior: Prior) -> None:
    z = torch.randn(8, 3)
    trace = poutine.trace(poutine.condition(prior.model, {"z": z})).get_trace()
    assert trace.nodes["z"]["is_observed"]
    assert trace.nodes["_RETURN"]["value"] is z
    torch.testing.assert_close(trace.log_prob_sum(), prior.log_density(z).sum())


def test_replay_scores_the_value_of_the_other_trace(prior: Prior) -> None:
    first = poutine.trace(prior.model).get_trace()
    z = first.nodes["z"]["value"]
    again = poutine.trace(poutine.replay(prior.model, first)).get_trace()
    assert again.nodes["z"]["value"] is z
    torch.testing.assert_close(again.log_prob_sum(), first.log_prob_sum())
    torch.testing.assert_close(again.log_prob_sum(), prior.log_density(z.clone()).sum())


def test_replay_of_another_flow_carries_gradients_to_both(prior: Prior) -> None:
    guide = Prior(conditional=True)

    def draw() -> None:
        with pyro.plate("points", 8) as index:
            pyro.sample("z", guide.at(index))

    drawn = poutine.trace(draw).get_trace()
    model = poutine.trace(poutine.replay(prior.model, drawn)).get_trace()
    (model.log_prob_sum() - drawn.log_prob_sum()).backward()
    for flow in (prior.flow, guide.flow):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
        assert sum(p.grad.abs().sum() for p in flow.parameters()) > 0


def test_scale_multiplies_log_density_and_gradient(prior: Prior) -> None:
    z = torch.randn(8, 3)
    conditioned = poutine.condition(prior.model, {"z": z})
    scaled = poutine.trace(poutine.scale(conditioned, 2.5)).get_trace()
    parameters = list(prior.flow.parameters())
    found = torch.autograd.grad(scaled.log_prob_sum(), parameters)
    expected = torch.autograd.grad(2.5 * prior.log_density(z).sum(), parameters)
    torch.testing.assert_close(scaled.log_prob_sum(), 2.5 * prior.log_density(z).sum())
    torch.testing.assert_close(found, expected)


def test_mask_leaves_out_points_in_density_and_gradient(prior: Prior) -> None:
    z, mask = torch.randn(8, 3), torch.arange(8) % 3 > 0
    conditioned = poutine.condition(prior.model, {"z": z})
    masked = poutine.trace(poutine.mask(conditioned, mask)).get_trace()
    masked.compute_log_prob()
    parameters = list(prior.flow.parameters())
    found = torch.autograd.grad(masked.log_prob_sum(), parameters)
    expected = torch.autograd.grad(prior.log_density(z)[:, mask].sum(), parameters)
    torch.testing.assert_close(masked.log_prob_sum(), prior.log_density(z)[:, mask].sum())
    torch.testing.assert_close(found, expected)
    assert (masked.nodes["z"]["log_prob"][~mask] == 0).all()


def test_masked_distribution_is_masked_site(prior: Prior) -> None:
    z, mask = torch.randn(8, 3), torch.arange(8) % 2 > 0
    found = prior.at(torch.arange(8)).mask(mask).log_prob(z)
    torch.testing.assert_close(found, prior.log_density(z)[0] * mask)


def test_block_hides_the_site_and_its_parameters(prior: Prior) -> None:
    hidden = poutine.trace(poutine.block(prior.model, hide=["z"])).get_trace()
    assert "z" not in hidden.nodes
    z = hidden.nodes["_RETURN"]["value"]
    torch.testing.assert_close(hidden.log_prob_sum(), prior.log_density(z)[1].sum())
    fixed = poutine.block(prior.model, expose_types=["sample"])
    with poutine.trace(param_only=True) as params:
        fixed()
    assert not params.trace.param_nodes
    with poutine.trace(param_only=True) as params:
        prior.model()
    assert len(params.trace.param_nodes) == len(list(prior.flow.parameters()))


def test_subsamples_add_up_to_the_whole(prior: Prior) -> None:
    z = torch.randn(8, 3)
    sums = []
    for subsample in torch.randperm(8).split(2):
        conditioned = poutine.condition(prior.model, {"z": z[subsample]})
        trace = poutine.trace(conditioned).get_trace(subsample)
        trace.compute_log_prob()
        assert trace.nodes["z"]["log_prob"].shape == (2,)
        assert trace.nodes["z"]["scale"] == 4
        sums.append(trace.log_prob_sum())
    torch.testing.assert_close(torch.stack(sums).mean(), prior.log_density(z).sum())


def test_scale_mask_and_subsample_together(prior: Prior) -> None:
    z, subsample = torch.randn(8, 3), torch.tensor([6, 1, 3, 4])
    mask = torch.tensor([True, False, True, True])
    with poutine.scale(scale=0.5), poutine.mask(mask=mask):
        conditioned = poutine.condition(prior.model, {"z": z[subsample]})
        trace = poutine.trace(conditioned).get_trace(subsample)
    kept = prior.log_density(z)[:, subsample[mask]]
    torch.testing.assert_close(trace.log_prob_sum(), 0.5 * 2 * kept.sum())


def test_particles_on_the_left_are_scored_alone(prior: Prior) -> None:
    def drawn() -> None:
        with pyro.plate("particles", 5, dim=-2):
            prior.model()

    trace = poutine.trace(drawn).get_trace()
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    assert z.shape == (5, 8, 3)
    expected = torch.stack([prior.log_density(particle)[0] for particle in z.detach().clone()])
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)
