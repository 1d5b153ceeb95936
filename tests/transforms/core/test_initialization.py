"""Data-dependent initialisation of whole flows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform
from torch.distributions.transforms import _InverseTransform

import pyro_resflow
from pyro_resflow import conditional_residual, residual_flow
from pyro_resflow.flows import Glow, ImageFlow, RealNVP
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import ConvConditioner, DataInitialized, ResidualConditioner
from pyro_resflow.transforms import (
    ActNorm,
    BatchNorm,
    Compose,
    ConditionalAffine,
    ConditionalCompose,
    Inverse,
    Multiscale,
    Squeeze,
    initialize,
)


def parts(flow: nn.Module) -> list[DataInitialized]:
    return [module for module in flow.modules() if isinstance(module, DataInitialized)]


FLOWS: dict[str, Callable[[], ImageFlow]] = {
    "glow": lambda: Glow((1, 4, 4), (2, 1), network=ConvConditioner(4)),
    "real_nvp": lambda: RealNVP((1, 4, 4), network=ResidualConditioner(4, blocks=1)),
}


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_image_flow_is_initialised_throughout_by_one_batch(name: str) -> None:
    flow = FLOWS[name]()
    images = 0.2 + 0.6 * torch.rand(32, 1, 4, 4)
    initialize(flow, images)
    assert all(bool(part.initialized) for part in parts(flow))
    z = flow.inv(images)
    assert z.mean().abs() < 0.2
    assert 0.5 < z.std() < 1.5


def test_another_call_starts_again() -> None:
    flow = FLOWS["glow"]()
    first, second = torch.rand(32, 1, 4, 4), 5 + 3 * torch.rand(32, 1, 4, 4)
    initialize(flow, second)
    expected = {name: value.clone() for name, value in flow.state_dict().items()}
    initialize(flow, first)
    assert any(not torch.equal(flow.state_dict()[name], expected[name]) for name in expected)
    initialize(flow, second)
    for name, value in flow.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrap", [lambda t: ComposeTransform([t]), _InverseTransform])
def test_torchs_own_wrappers_are_looked_into(wrap: Callable[[Transform], Transform]) -> None:
    norm = ActNorm(3)
    for mean in (4, -4):
        data = mean + torch.randn(200, 3)
        initialize(wrap(norm), data)
        z = wrap(norm).inv(data).detach()
        torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compose([ActNorm(3), ActNorm(3)]),
        lambda: Inverse(Compose([ActNorm(3), ActNorm(3)])),
        lambda: residual_flow(3, 2, [8]),
        lambda: residual_flow(3, 2, [8], fast="density"),
    ],
)
def test_whichever_way_a_flow_runs_data_become_standard(make: Callable[[], Compose]) -> None:
    flow = make()
    initialize(flow, 5 + 3 * torch.randn(200, 3))
    z = flow.inv(5 + 3 * torch.randn(1000, 3)).detach()
    assert z.mean(0).abs().max() < 1
    assert (z.std(0).log().abs() < 1).all()


def test_encoder_is_given_as_its_inverse() -> None:
    encoder = Multiscale([Squeeze(), ActNorm(2, event_dim=3)], (1, 4, 4))
    x = torch.randn(50, 1, 4, 4)
    initialize(encoder.inv, 3 + x)
    kept = encoder(3 + x)[:, 8:]
    torch.testing.assert_close(kept.mean(), torch.zeros(()), atol=1e-5, rtol=0)


def test_conditional_flow_at_its_contexts() -> None:
    norm = ActNorm(3)
    flow = ConditionalCompose([norm, conditional_residual(3, 2, [8])])
    initialize(flow, 4 + torch.randn(50, 3), torch.randn(50, 2))
    assert norm.initialized
    with pytest.raises(ValueError, match="context: expected a context for each sample"):
        initialize(flow, torch.randn(50, 3))
    with pytest.raises(ValueError, match="context: expected None, because"):
        initialize(norm, torch.randn(50, 3), torch.randn(50, 2))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 3)])
def test_single_sample_is_named_and_nothing_forgotten(shape: tuple[int, ...]) -> None:
    norm = ActNorm(3)
    initialize(norm, torch.randn(50, 3))
    with pytest.raises(ValueError, match="data: expected a batch of at least two"):
        initialize(norm, torch.randn(shape))
    assert norm.initialized


def density(flow: Transform, *size: int) -> dist.TransformedDistribution:
    """The distribution of normal noise after a flow."""
    base = dist.Normal(torch.zeros(size), 1.0).to_event(len(size))
    return dist.TransformedDistribution(base, [flow])


def waits(flow: nn.Module) -> bool:
    """Whether every part of a flow waits for data; fails if only some do."""
    flags = {bool(part.initialized) for part in parts(flow)}
    assert len(flags) == 1
    return not flags.pop()


def far(number: int) -> Tensor:
    return 100 + 3 * torch.randn(number, 2)


@pytest.fixture
def flow() -> Transform:
    return residual_flow(2, 2, [8], fast="density", logdet=Exact())


@pytest.mark.parametrize("draw", ["sample", "rsample"])
@pytest.mark.parametrize("training", [True, False])
def test_samples_leave_a_flow_waiting_and_say_so_once(
    flow: Compose, draw: str, training: bool
) -> None:
    distribution = density(flow.train(training), 2)
    with pytest.warns(UserWarning, match="initialised") as warned:
        samples = torch.cat([getattr(distribution, draw)((100,)) for _ in range(3)])
    assert len(warned) == 1
    assert "initialize(flow, data)" in str(warned[0].message)
    assert waits(flow)
    assert 0.5 < samples.std() < 2  # of noise that two contractions have passed
    flow.train()
    data = far(200)
    assert -distribution.log_prob(data).mean() < 8  # by a normal distribution of std 3: 5.04
    assert not waits(flow)


@pytest.mark.filterwarnings("ignore:.*not initialised yet")
def test_a_sample_that_is_scored_from_the_cache_leaves_it_waiting(flow: Compose) -> None:
    distribution = density(flow, 2)
    distribution.log_prob(distribution.rsample((100,)))
    with torch.no_grad():
        distribution.log_prob(distribution.sample((100,)))
    assert waits(flow)


@pytest.mark.filterwarnings("ignore:.*not initialised yet")
def test_no_direct_call_initialises(flow: Compose) -> None:
    for call in (flow, flow.inv, flow.call_and_ladj, flow.inverse_and_ladj):
        call(far(100))
        assert waits(flow)


def test_evaluation_mode_scores_nothing_before(flow: Compose) -> None:
    initialize(flow.eval(), far(100))
    expected = density(flow, 2).log_prob(far(10) + 50).mean()
    assert expected < -100  # data so far off are no others' normal ones
    for part in parts(flow):
        part.await_batch()
    with pytest.raises(ValueError, match=r"evaluation mode.*call .*initialize\(flow, data\)"):
        density(flow, 2).log_prob(far(100))
    assert waits(flow)


@pytest.mark.parametrize("number", [1, 2, 15])
def test_a_small_batch_says_how_many_it_takes(flow: Compose, number: int) -> None:
    with pytest.raises(ValueError, match=rf"the {number} sample\(s\).*score at least 16"):
        density(flow, 2).log_prob(far(number))
    assert waits(flow)
    density(flow, 2).log_prob(far(16))
    assert not waits(flow)
    density(flow, 2).log_prob(far(1))


def plate_of_latents(flow: Transform) -> Callable[[], None]:
    def model() -> None:
        with pyro.plate("points", 50):
            z = pyro.sample("z", density(flow, 2))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.zeros(50, 2))

    return model


@pytest.mark.filterwarnings("ignore:.*not initialised yet")
def test_pyros_prior_draws_leave_a_flow_waiting(flow: Compose) -> None:
    model = plate_of_latents(flow)
    Predictive(model, num_samples=20)()
    AutoNormal(model)()
    assert waits(flow)
    with pytest.raises(ValueError, match="states of a Markov chain must not initialise it"):
        initialize_model(model)
    assert waits(flow)


@pytest.mark.filterwarnings("ignore:.*not initialised yet")
def test_the_prior_of_a_single_latent_starts_from_draws_of_its_base_as_the_error_says() -> None:
    pyro.clear_param_store()
    flow = residual_flow(2, 1, [8], fast="density")
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model() -> None:
        z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.zeros(2))

    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    with pytest.raises(ValueError, match=r"the 1 sample\(s\)") as error:
        svi.step()
    assert "initialized=" not in str(error.value)  # no argument of residual_flow
    (remedy,) = re.findall(r"base distribution: (\S.*\))\.\s", str(error.value))
    eval(remedy, {"pyro_resflow": pyro_resflow, "flow": flow, "base": base})
    assert not waits(flow)
    assert math.isfinite(svi.step())
    draws = dist.TransformedDistribution(base, [flow]).sample((2000,))
    assert (draws.mean(0).abs() < 0.3).all()
    assert ((draws.std(0) > 0.6) & (draws.std(0) < 1.6)).all()


@pytest.mark.parametrize("name", sorted(FLOWS))
@pytest.mark.filterwarnings("ignore:.*not initialised yet")
def test_image_flows_keep_the_same_rule(name: str) -> None:
    flow = FLOWS[name]()
    images = 0.2 + 0.6 * torch.rand(32, 1, 4, 4)
    flow.distribution().sample((20,))
    flow.inv(images.clone())
    assert waits(flow)
    with pytest.raises(ValueError, match="score at least 16"):
        flow.distribution().log_prob(images[:2])
    with pytest.raises(ValueError, match="evaluation mode"):
        flow.eval().distribution().log_prob(images)
    flow.train().distribution().log_prob(images)
    assert not waits(flow)


@pytest.mark.parametrize("size", [7, 2, 1])
def test_chunks_give_what_all_data_give(size: int) -> None:
    flow, other = (Glow((1, 4, 4), (1, 1), network=ConvConditioner(4)) for _ in range(2))
    other.load_state_dict(flow.state_dict())
    images = torch.rand(20, 1, 4, 4)
    initialize(flow, images)
    initialize(other, images, chunk_size=size)
    assert not waits(other)
    for name, value in flow.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_chunks_take_their_contexts_along() -> None:
    flow = ConditionalCompose([conditional_affine_far_from_zero(), ActNorm(3)])
    data, context = torch.randn(4, 10, 3), torch.randn(10, 2)
    initialize(flow, data, context)
    expected = flow.state_dict()["1.log_scale"].clone()
    initialize(flow, data, context, chunk_size=7)
    torch.testing.assert_close(flow.state_dict()["1.log_scale"], expected)
    with pytest.raises(ValueError, match="chunk_size: expected at least 1"):
        initialize(flow, data, context, chunk_size=0)


def conditional_affine_far_from_zero() -> ConditionalAffine:
    affine = ConditionalAffine(3, 2, [8])
    with torch.no_grad():
        for parameter in affine.parameters():
            parameter.add_(torch.randn_like(parameter))
    return affine


def test_batch_norms_take_every_chunk_together_and_count_one_batch() -> None:
    norm = BatchNorm(3)
    data = 5 + torch.randn(20, 3)
    initialize(norm.inv, data, chunk_size=6)
    torch.testing.assert_close(norm.mean, data.mean(0))
    torch.testing.assert_close(norm.variance, data.var(0, correction=0))
    assert norm.num_batches == 1


def test_integer_images_are_named() -> None:
    with pytest.raises(ValueError, match="data: expected floating-point numbers"):
        initialize(FLOWS["glow"](), torch.randint(0, 255, (5, 1, 4, 4)))


def test_its_pass_is_not_handed_out_again_without_gradients() -> None:
    flow = FLOWS["glow"]()
    initialize(flow, images := torch.rand(32, 1, 4, 4))
    assert flow.inv(images).requires_grad
