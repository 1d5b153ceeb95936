"""The automatic guide: samples, densities, quantiles, training, subsampled plates."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import init_to_mean
from torch import Tensor

from pyro_resflow.guides import (
    AutoResidualFlow,
    guide_logdet,
    shrink_last_layers,
)
from pyro_resflow.logdet import EstimatedInElbo, Exact, Krylov
from pyro_resflow.nn import LipschitzMLP, SpectralNorm
from pyro_resflow.transforms import is_deterministic
from tests.guides.cases import DATA, hierarchical, perturbed, small, train, unpacked

# One sample, its shapes and its density


def test_samples_every_site_in_its_shape_and_support(dtype: torch.dtype) -> None:
    sample = small(hierarchical)()
    shapes = {name: tuple(value.shape) for name, value in sample.items()}
    assert shapes == {"scale": (), "weights": (3,), "local": (4,), "pair": (2,)}
    assert sample["scale"] > 0
    assert (sample["weights"].sum() - 1).abs() < 1e-6
    assert all(value.dtype == dtype for value in sample.values())


def test_starts_at_the_initial_location_and_scale() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.tensor([3.0, -2.0]), 1.0).to_event(1))

    guide = small(model, init_loc_fn=init_to_mean, init_scale=0.01)
    guide()
    draws = guide.get_posterior().sample((1000,))
    assert (draws.mean(0) - torch.tensor([3.0, -2.0])).abs().max() < 0.05
    assert draws.std(0).max() < 0.05


def test_density_of_the_guide_is_that_of_a_change_of_variables() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        guide = perturbed(small(hierarchical))
        trace = poutine.trace(guide).get_trace()
        latent = trace.nodes["_AutoResidualFlow_latent"]["value"].detach()
        noise = guide.transform._inverse(latent)
        jacobian = torch.autograd.functional.jacobian(guide.transform._call, noise)
        normal = dist.Normal(torch.zeros(9), 1.0).to_event(1)
        unconstrained = normal.log_prob(noise) - torch.linalg.slogdet(jacobian)[1]
        stick = torch.distributions.biject_to(dist.Dirichlet(torch.ones(3)).support)
        entries = unpacked(guide, latent)
        constrained = (
            unconstrained
            - entries["scale"]  # d exp(u) / du
            - stick.log_abs_det_jacobian(entries["weights"], stick(entries["weights"]))
        )
        torch.testing.assert_close(trace.log_prob_sum(), constrained)
    finally:
        torch.set_default_dtype(torch.float32)


def test_scores_other_points_than_its_own_samples() -> None:
    guide = perturbed(small(hierarchical))
    posterior = guide.get_posterior()
    x = posterior.sample((5,))
    own = posterior.log_prob(x)
    guide.transform.clear_cache()
    torch.testing.assert_close(posterior.log_prob(x.clone()), own, atol=1e-4, rtol=0)
    assert own.shape == (5,)
    assert own.requires_grad


def test_posterior_is_there_before_the_first_call() -> None:
    guide = small(hierarchical)
    posterior = guide.get_posterior()
    assert posterior.event_shape == (9,)
    assert posterior.batch_shape == ()
    assert guide.get_transform() is guide.transform


def test_full_rank_or_diagonal() -> None:
    sizes = {}
    for full_rank in (True, False):
        guide = small(hierarchical, full_rank=full_rank)
        guide()
        sizes[full_rank] = sum(parameter.numel() for parameter in guide.parameters())
    assert sizes[True] - sizes[False] == 9 * 8 // 2


def test_without_its_blocks_the_guide_is_any_multivariate_normal() -> None:
    covariance = torch.tensor([[1.0, 0.95], [0.95, 4.0]])
    guide = small(lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1)))
    guide()
    shrink_last_layers(guide, 0.0)
    root = torch.linalg.cholesky(covariance)
    with torch.no_grad():
        guide.transform.parts[-1].log_scale.copy_(root.diagonal().log())
        guide.transform.parts[-1].below_diagonal.copy_(root[1, 0] / root[1, 1])
        guide.transform.parts[-1].shift.copy_(torch.tensor([1.0, -1.0]))
    expected = dist.MultivariateNormal(torch.tensor([1.0, -1.0]), covariance)
    x = torch.randn(7, 2)
    torch.testing.assert_close(guide.get_posterior().log_prob(x), expected.log_prob(x))


def test_log_det_is_exact_in_few_dimensions_and_estimated_in_many() -> None:
    kinds = {size: type(guide_logdet(size)) for size in (16, 17, 48, 49)}
    assert kinds == {16: Exact, 17: EstimatedInElbo, 48: EstimatedInElbo, 49: Krylov}
    guide = small(hierarchical)
    guide()
    assert is_deterministic(guide)


def test_the_class_of_networks_can_be_chosen() -> None:
    guide = small(hierarchical, network=LipschitzMLP, norm=SpectralNorm(0.5))
    guide()
    nets = [part for part in guide.modules() if isinstance(part, LipschitzMLP)]
    assert nets
    assert all(net[0].norm.coefficient == 0.5 for net in nets)
    with pytest.raises(TypeError, match="there is no argument 'norm'"):
        small(hierarchical, norm=SpectralNorm(0.5))
    with pytest.raises(TypeError, match=r"network: expected a class .*such as GatedLipschitzMLP"):
        small(hierarchical, network=LipschitzMLP(2))


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_bad_initial_scale_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="init_scale"):
        AutoResidualFlow(hierarchical, init_scale=scale)


# Median and quantiles


def test_quantiles_are_those_of_many_samples(dtype: torch.dtype) -> None:
    guide = perturbed(small(hierarchical))
    found = guide.quantiles([0.1, 0.5, 0.9])
    draws = Predictive(hierarchical, guide=guide, num_samples=4000, parallel=True)()
    for name in ("scale", "local"):
        samples = draws[name].reshape(4000, *found[name].shape[1:])
        for quantile, values in zip((0.1, 0.5, 0.9), found[name], strict=True):
            below = (samples <= values).to(dtype).mean(0)
            error = (quantile * (1 - quantile) / 4000) ** 0.5
            error = (error**2 + quantile * (1 - quantile) / guide.num_quantile_draws) ** 0.5
            assert ((below - quantile).abs() < 4 * error).all()


def test_median_is_the_middle_quantile_the_same_at_every_call() -> None:
    guide = perturbed(small(hierarchical))
    state = torch.get_rng_state()
    median = guide.median()
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in guide.quantiles(torch.tensor([0.5])).items():
        assert torch.equal(value[0], median[name])
        assert not value.requires_grad


def test_median_has_the_shapes_of_the_sites_before_any_call() -> None:
    median = small(hierarchical).median()
    shapes = {name: tuple(value.shape) for name, value in median.items()}
    assert shapes == {"scale": (), "weights": (3,), "local": (4,), "pair": (2,)}


# Training


@pytest.mark.parametrize("vectorize", [False, True])
def test_particles_vectorized_or_not_train_every_parameter(vectorize: bool) -> None:
    guide = small(hierarchical)
    guide()
    before = [parameter.clone() for parameter in guide.parameters()]
    losses = train(
        hierarchical, guide, num_particles=4, vectorize_particles=vectorize, max_plate_nesting=1
    )
    assert torch.tensor(losses).isfinite().all()
    changed = [not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True)]
    assert all(changed)


def test_vectorized_particles_estimate_the_same_elbo() -> None:
    guide = perturbed(small(hierarchical))
    guide.requires_grad_(False).eval()
    looped = Trace_ELBO(num_particles=100)
    vectorized = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    found = [elbo.loss(hierarchical, guide) for elbo in (looped, vectorized)]
    spread = torch.tensor([Trace_ELBO().loss(hierarchical, guide) for _ in range(60)]).std()
    assert abs(found[0] - found[1]) < 4 * spread * (2 / 100) ** 0.5


def test_reaches_the_evidence_of_a_conjugate_model() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(z, 0.5), obs=DATA)

    guide = small(model)
    options = {"num_particles": 32, "vectorize_particles": True, "max_plate_nesting": 1}
    train(model, guide, steps=100, lr=5e-2, **options)
    found = torch.tensor([-Trace_ELBO(**options).loss(model, guide) for _ in range(30)])
    error = found.std() / 30**0.5
    covariance = 4.0 + 0.25 * torch.eye(4)
    evidence = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(DATA)
    assert evidence - 0.1 < found.mean() < evidence + 4 * error


# Subsampled plates


def subsampled(data: Tensor, size: int) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(data), subsample_size=size) as index:
        local = pyro.sample("local", dist.Normal(loc, 1.0))
        pyro.sample("obs", dist.Normal(local, 0.5), obs=data[index])


def test_local_variables_of_a_subsampled_plate_are_all_there() -> None:
    guide = small(subsampled)
    sample = guide(DATA, 2)
    assert sample["local"].shape == (2,)
    assert guide.latent_dim == 5
    assert guide.median(DATA, 2)["local"].shape == (4,)
    assert guide.quantiles([0.1, 0.9], DATA, 2)["local"].shape == (2, 4)


def test_subsampled_elbo_is_unbiased() -> None:
    guide = perturbed(small(subsampled), DATA, 2)
    elbo = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)

    def losses(size: int) -> Tensor:
        same = small(subsampled)  # a guide keeps to the subsample size of its first call
        same.load_state_dict(guide.state_dict())
        same.requires_grad_(False).eval()
        return torch.tensor([elbo.loss(subsampled, same, DATA, size) for _ in range(80)])

    half, full = losses(2), losses(4)
    error = (half.var() / 80 + full.var() / 80).sqrt()
    assert (half.mean() - full.mean()).abs() < 4 * error


def test_subsample_is_the_part_of_the_whole_that_the_plate_draws() -> None:
    guide = perturbed(small(subsampled), DATA, 2)
    trace = poutine.trace(guide).get_trace(DATA, 2)
    latent = trace.nodes["_AutoResidualFlow_latent"]["value"]
    whole = unpacked(guide, latent)["local"]
    assert torch.equal(trace.nodes["local"]["value"], whole[trace.nodes["data"]["value"]])


def test_minibatches_chosen_by_hand_through_create_plates() -> None:
    def model(data: Tensor, index: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(data), subsample=index):
            local = pyro.sample("local", dist.Normal(loc, 1.0))
            pyro.sample("obs", dist.Normal(local, 0.5), obs=data[index])

    def plates(data: Tensor, index: Tensor) -> pyro.plate:
        return pyro.plate("data", len(data), subsample=index)

    guide = small(model, create_plates=plates)
    for index in (torch.tensor([0, 2]), torch.tensor([3, 1])):
        trace = poutine.trace(guide).get_trace(DATA, index)
        whole = unpacked(guide, trace.nodes["_AutoResidualFlow_latent"]["value"])["local"]
        assert torch.equal(trace.nodes["local"]["value"], whole[index])


def test_predictive_draws_from_the_guide() -> None:
    guide = perturbed(small(hierarchical))
    draws = Predictive(hierarchical, guide=guide, num_samples=6, parallel=True)()
    assert draws["local"].reshape(6, 4).isfinite().all()


def test_estimator_can_be_changed_after_training() -> None:
    guide = small(hierarchical, logdet=Krylov())
    with pytest.raises(ValueError, match="first call"):
        guide.set_logdet(Exact())
    guide()
    assert not is_deterministic(guide)
    guide.set_logdet(Exact())
    assert is_deterministic(guide)


def test_settings_and_quantiles_that_make_no_sense_are_refused() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="blocks: expected at least one residual block, got 0"):
        AutoResidualFlow(model, blocks=0)
    with pytest.raises(ValueError, match=r"quantiles: expected numbers in \[0, 1\], got \[1.5\]"):
        AutoResidualFlow(model, blocks=1, hidden_dims=[8]).quantiles([1.5])
