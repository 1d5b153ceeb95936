"""Variational dequantization stays in its bin, is a density and a guide, and beats uniform."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_resflow.distributions import Dequantized
from pyro_resflow.nn import GatedAttentionConditioner, GatedEncoder, initialize_by
from pyro_resflow.transforms import (
    Columns,
    CouplingStep,
    Dequantization,
    LogisticMixtureMap,
    UniformDequantization,
    VariationalDequantization,
)


def small(
    event_shape: tuple[int, int, int] = (1, 4, 4), bins: int = 8, **options: object
) -> VariationalDequantization:
    """A small dequantizer, initialised and away from where it starts."""
    dequantization = VariationalDequantization(
        event_shape,
        bins,
        2,
        step=CouplingStep(GatedAttentionConditioner(8, 1), lambda: LogisticMixtureMap(3)),
        features=GatedEncoder(4, 1),
        **options,
    )
    images = torch.randint(bins, (30, *event_shape))
    initialize_by(lambda x: dequantization.distribution(x).sample(), [images])
    with torch.no_grad():
        for parameter in dequantization.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return dequantization


@pytest.mark.parametrize("bins", [2, 23, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 5.0, 50.0, 1e4, 1e8])
def test_v_never_leaves_its_bin(bins: int, dtype: torch.dtype, noise: float) -> None:
    dequantization = small(bins=bins).to(dtype)
    x = torch.randint(bins, (20, 1, 4, 4))
    extreme = noise * torch.randn(20, 1, 4, 4, dtype=dtype).sign()
    v, ladj = dequantization.condition(x).call_and_ladj(extreme)
    assert torch.equal((v * bins).floor().long(), x)
    assert v.max() < 1
    assert ladj.isfinite().all()


def test_density_integrates_to_one_over_the_bin() -> None:
    dequantization = small((1, 1, 2), 4).double()
    x = torch.tensor([1, 3]).reshape(1, 1, 2)
    step = 0.1
    logits = torch.arange(-6, 6, step, dtype=torch.float64)
    margin = 2 * 4 * torch.finfo(torch.float64).eps
    u = margin + (1 - 2 * margin) * torch.cartesian_prod(logits, logits).sigmoid()
    v = (x + u.reshape(-1, 1, 1, 2)) / 4
    slopes = (u * (1 - u) / 4).log().sum(1)
    with torch.no_grad():
        log_q = dequantization.distribution(x).log_prob(v)
    total = (log_q + slopes).exp().sum() * step**2
    assert (total - 1).abs() < 1e-4


def test_noise_depends_on_the_image() -> None:
    dequantization = small()
    noise = torch.randn(2, 1, 4, 4)
    noise[1] = noise[0]
    x = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 7)]).long()
    v = dequantization.condition(x)(noise)
    assert ((v * 8)[0] - ((v * 8)[1] - 7)).abs().max() > 1e-3


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("sample_shape", [(), (5,)])
def test_shapes(batch_shape: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    dequantization = small()
    x = torch.randint(8, (*batch_shape, 1, 4, 4))
    q = dequantization.distribution(x)
    assert q.batch_shape == batch_shape
    assert q.event_shape == (1, 4, 4)
    v = q.rsample(sample_shape)
    assert torch.equal((v * 8).floor().long(), x.expand_as(v))
    assert q.log_prob(v).shape == (*sample_shape, *batch_shape)


@pytest.mark.parametrize("event_shape", [(3, 2, 6), (1, 3, 3), (2, 2, 5)])
@pytest.mark.parametrize("mask", [None, Columns])
def test_any_image_size(event_shape: tuple[int, int, int], mask: object) -> None:
    dequantization = small(event_shape, **({} if mask is None else {"mask": mask}))
    x = torch.randint(8, (5, *event_shape))
    conditioned = dequantization.condition(x)
    noise = torch.randn(5, *event_shape)
    v = conditioned(noise)
    assert (conditioned.inv(v.clone()) - noise).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.float16, torch.float64])
def test_images_of_any_type(dtype: torch.dtype) -> None:
    x = torch.randint(8, (5, 1, 4, 4)).to(dtype)
    v = small().distribution(x).sample()
    assert v.dtype == torch.float32
    assert torch.equal((v * 8).floor(), x.float())


def skewed(scale: float = 0.15) -> dist.TransformedDistribution:
    """Two pixels whose probability is heaped up at the lower edge of a bin of four."""
    base = dist.Normal(torch.full((1, 1, 2), -1.1), scale).to_event(3)
    return dist.TransformedDistribution(base, [dist.transforms.SigmoidTransform()])


def test_fitted_noise_beats_uniform_noise_and_stays_a_bound() -> None:
    p, bins = skewed(), 4
    dequantization = small((1, 1, 2), bins)
    x = torch.tensor([1, 0]).reshape(1, 1, 2)
    edges = torch.arange(5, dtype=torch.float64).div(4).logit()
    cells = torch.distributions.Normal(-1.1, 0.15).cdf(edges).diff()
    exact = (cells[1] * cells[0]).log()
    images = x.expand(128, 1, 1, 2)
    optimizer = torch.optim.Adam(dequantization.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (-Dequantized(p, dequantization, bins).log_prob(images).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        many = x.expand(4000, 1, 1, 2)
        fitted = Dequantized(p, dequantization, bins).log_prob(many)
        uniform = Dequantized(p, UniformDequantization(bins), bins).log_prob(many)
    error = fitted.std() / 4000**0.5
    assert fitted.mean() > uniform.mean() + 1
    assert fitted.mean() < exact + 4 * error
    assert exact - fitted.mean() < 0.2
    # whatever the noise, its importance-weighted likelihood is unbiased
    weights = (fitted - exact).exp()
    assert (weights.mean() - 1).abs() < 4 * weights.std() / 4000**0.5


def test_guide_and_dequantized_have_one_objective() -> None:
    p, bins = skewed(), 4
    dequantization = small((1, 1, 2), bins)
    images = torch.randint(2, (6, 1, 1, 2))

    def model(images: Tensor) -> None:
        with pyro.plate("images", len(images)):
            pyro.sample("v", p)

    def guide(images: Tensor) -> None:
        pyro.module("dequantization", dequantization)
        with pyro.plate("images", len(images)):
            pyro.sample("v", dequantization.distribution(images))

    pyro.clear_param_store()
    torch.manual_seed(3)
    elbo = -Trace_ELBO().differentiable_loss(model, guide, images)
    by_guide = torch.autograd.grad(elbo, list(dequantization.parameters()))
    torch.manual_seed(3)
    total = Dequantized(p, dequantization, bins).log_prob(images).sum()
    by_distribution = torch.autograd.grad(total, list(dequantization.parameters()))
    torch.testing.assert_close(elbo, total)
    for a, b in zip(by_guide, by_distribution, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    before = copy.deepcopy(dequantization.state_dict())
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(images)
    for name, parameter in dequantization.named_parameters():
        if not name.endswith("triangles"):  # of a 1x1 convolution of one channel
            assert not torch.equal(parameter, before[name]), name


def test_more_samples_tighten_the_bound() -> None:
    p, bins = skewed(), 4
    dequantization = small((1, 1, 2), bins)
    x = torch.tensor([1, 1]).reshape(1, 1, 2)
    draws = {}
    with torch.no_grad():
        for number in (1, 16):
            d = Dequantized(p, dequantization, bins, num_samples=number)
            draws[number] = d.log_prob(x.expand(500, 1, 1, 2))
    gain = draws[16].mean() - draws[1].mean()
    error = math.hypot(*(each.std().item() / 500**0.5 for each in draws.values()))
    assert gain > 4 * error


@pytest.mark.parametrize("make", [small, lambda: UniformDequantization(8)])
def test_conditional_inverse(make: Callable[[], Dequantization]) -> None:
    dequantization = make()
    assert dequantization.inv.inv is dequantization
    x = torch.randint(8, (5, 1, 4, 4))
    noise = dequantization.noise(x).sample()
    v = dequantization.condition(x)(noise)
    found = dequantization.inv.condition(x)(v)
    torch.testing.assert_close(found, noise, atol=1e-3, rtol=1e-3)


def test_copies_and_pickles_give_the_same() -> None:
    dequantization = small()
    x, noise = torch.randint(8, (5, 1, 4, 4)), torch.randn(5, 1, 4, 4)
    expected = dequantization.condition(x)(noise)
    for other in (copy.deepcopy(dequantization), pickle.loads(pickle.dumps(dequantization))):
        torch.testing.assert_close(other.condition(x)(noise), expected, rtol=0, atol=0)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="bins: expected at least two"):
        VariationalDequantization((1, 4, 4), 1)
    with pytest.raises(ValueError, match="couplings: expected at least one"):
        VariationalDequantization((1, 4, 4), 8, 0)
    with pytest.raises(ValueError, match=r"context: expected shape \(\*batch, 1, 4, 4\)"):
        small().condition(torch.zeros(5, 1, 4, 6))


def test_noise_at_the_edge_of_a_bin_comes_back_finite() -> None:
    dequantization = small(bins=256)
    images = torch.randint(256, (50, 1, 4, 4))
    q = dequantization.distribution(images)
    noise = 40 * torch.randn(50, 1, 4, 4)  # far out: u is within rounding of 0 and of 1
    with torch.no_grad():
        v = dequantization.condition(images)(noise)
        assert torch.equal((v * 256).floor().long(), images)
        assert q.log_prob(v.clone()).isfinite().all()


def test_there_is_no_density_outside_of_the_bin() -> None:
    dequantization = small()
    images = torch.randint(1, 7, (5, 1, 4, 4))
    v = (images + 0.5) / 8
    v[0, 0, 1, 1] += 1 / 8
    with torch.no_grad():
        found = dequantization.distribution(images).log_prob(v)
    assert found[0] == -math.inf
    assert found[1:].isfinite().all()
