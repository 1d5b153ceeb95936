"""Every stochastic estimator against the exact log-determinant, for value and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.logdet import (
    LOG_CAYLEY,
    LOG_ONE_PLUS,
    AdaptiveKrylov,
    Exact,
    Frozen,
    Gaussian,
    Geometric,
    Krylov,
    NoTail,
    Poisson,
    RussianRoulette,
    SpectralFunction,
    StochasticEstimator,
)
from pyro_resflow.nn import LipschitzMLP
from tests.logdet.registry import UNBIASED_BY_DRAWS, estimator
from tests.networks import NETWORKS, activate_constraints, converged_norm

CALLS = 60
REPLICAS = 16  # of each sample within a call: as many draws for the price of one
SAMPLES = 4
# one weight zero and one negative, as a mask and a baseline make them
UPSTREAM = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)


@pytest.fixture(params=sorted(NETWORKS))
def problem(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    net, event_shape = NETWORKS[request.param](0.97)
    return net.double(), torch.randn(SAMPLES, *event_shape, dtype=torch.float64)


def gradients(net: nn.Module, x: Tensor, logdet: Tensor, g: Tensor) -> list[Tensor]:
    """Gradients of a weighted sum of log-determinants plus a function of the values."""
    replicas = len(logdet) // SAMPLES
    loss = (UPSTREAM.repeat(replicas) * logdet).sum() + g.square().sum()
    found = torch.autograd.grad(loss / replicas, [x, *net.parameters()])
    return [gradient.detach() for gradient in found]


def z_scores(draws: Tensor, truth: Tensor) -> Tensor:
    """Deviation of the mean of draws from the truth in standard errors, per entry."""
    error = draws.std(0) / len(draws) ** 0.5
    deviation = draws.mean(0) - truth
    certain = error < 1e-12
    assert torch.all(deviation[certain].abs() < 1e-9)  # what is not random has to be right
    return torch.where(certain, 0, deviation / error.clamp_min(1e-300))


@pytest.mark.parametrize("name", UNBIASED_BY_DRAWS)
def test_value_and_every_gradient_are_unbiased(
    name: str, problem: tuple[nn.Module, Tensor]
) -> None:
    check_unbiased(name, *problem, LOG_ONE_PLUS)


@pytest.mark.parametrize("name", ["adaptive", "krylov", "krylov keep", "roulette"])
@pytest.mark.parametrize("network", ["mlp", "plain_module"])
def test_those_of_another_function_of_the_jacobian_are_too(name: str, network: str) -> None:
    net, event_shape = NETWORKS[network](0.9)
    x = torch.randn(SAMPLES, *event_shape, dtype=torch.float64)
    check_unbiased(name, net.double(), x, LOG_CAYLEY)


def check_unbiased(name: str, net: nn.Module, x: Tensor, function: SpectralFunction) -> None:
    """Compare the estimator's value and gradients over many draws with the exact ones."""
    x.requires_grad_()
    event_dim = x.dim() - 1
    g, exact = Exact()(net, x, event_dim, function)
    truth = gradients(net, x, exact, g)
    values, grads = [], []
    for _ in range(CALLS):
        many = x.repeat(REPLICAS, *[1] * event_dim)
        g, logdet = estimator(name)(net, many, event_dim, function)
        values.append(logdet.detach().reshape(REPLICAS, SAMPLES).mean(0))
        grads.append(gradients(net, x, logdet, g))
    assert z_scores(torch.stack(values), exact.detach()).abs().max() < 4
    for draws, true_gradient in zip(zip(*grads, strict=True), truth, strict=True):
        stacked = torch.stack(draws)
        # one number for the whole of a parameter's gradient, at the four standard errors
        direction = torch.randn_like(true_gradient)
        along = (stacked * direction).reshape(CALLS, -1).sum(1)
        assert z_scores(along, (true_gradient * direction).sum()).abs() < 4
        # and each of up to hundreds of entries, of which some pass four by chance
        assert z_scores(stacked, true_gradient).abs().amax() < 6


def test_published_setting_is_unbiased_where_its_variance_is_finite() -> None:
    net, event_shape = NETWORKS["mlp"](0.6)
    net.double()
    x = torch.randn(SAMPLES, *event_shape, dtype=torch.float64)
    exact = Exact()(net, x)[1]
    estimator = RussianRoulette(2, tail=Poisson(2.0), probe=Gaussian())
    with torch.no_grad():
        draws = torch.stack([estimator(net, x)[1] for _ in range(2000)])
        assert z_scores(draws, exact).abs().max() < 4


def test_krylovs_truncation_is_negligible_beside_the_probe_and_roulettes_is_not() -> None:
    norm = converged_norm(0.97 ** (1 / 3))
    net = activate_constraints(LipschitzMLP(16, [32, 32], norm=norm), bias=1.0).double()
    x = torch.randn(SAMPLES, 16, dtype=torch.float64)
    limits, krylov, roulette = [], [], []
    with torch.no_grad():
        for seed in range(400):
            # four products on average each
            limits.append(same_probe(Krylov(16, tail=NoTail()), seed)(net, x)[1])
            krylov.append(same_probe(Krylov(3), seed)(net, x)[1] - limits[-1])
            published = RussianRoulette(2, tail=Poisson(2.0))
            roulette.append(same_probe(published, seed)(net, x)[1] - limits[-1])
    probe_variance = torch.stack(limits).var(0).mean()
    assert torch.stack(krylov).square().mean() < 0.01 * probe_variance
    assert torch.stack(roulette).square().mean() > 0.01 * probe_variance


def same_probe(estimator: StochasticEstimator, seed: int) -> StochasticEstimator:
    """The estimator, about to draw the probe that belongs to the seed."""
    torch.manual_seed(seed)
    return estimator


@pytest.mark.parametrize("memory", ["recompute", "keep"])
@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (0,)])
def test_batch_shapes(shape: tuple[int, ...], memory: str) -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    x = torch.randn(*shape, *event_shape, requires_grad=True)
    g, logdet = Krylov(memory=memory)(net, x)
    assert g.shape == x.shape
    assert logdet.shape == shape
    (g.sum() + logdet.sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_memory_modes_give_the_same_numbers(problem: tuple[nn.Module, Tensor]) -> None:
    net, x = problem
    x.requires_grad_()
    event_dim = x.dim() - 1
    found = []
    for memory in ("recompute", "keep"):
        torch.manual_seed(3)
        g, logdet = Krylov(memory=memory)(net, x, event_dim)
        found.append([logdet.detach(), *gradients(net, x, logdet, g)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("memory", ["recompute", "keep"])
def test_backward_twice_over_a_retained_graph(memory: str) -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    x = torch.randn(3, *event_shape, requires_grad=True)
    _, logdet = Krylov(memory=memory)(net, x)
    (first,) = torch.autograd.grad(logdet.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(logdet.sum(), x)
    torch.testing.assert_close(first, second)


def test_second_derivative_is_refused_rather_than_wrong() -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    x = torch.randn(3, *event_shape, requires_grad=True)
    _, logdet = Krylov()(net, x)
    (gradient,) = torch.autograd.grad(logdet.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"Exact\(\)"):
        gradient.sum().backward()


def test_frozen_parameters_let_the_gradient_reach_x() -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    net.requires_grad_(False)
    x = torch.randn(3, *event_shape, requires_grad=True)
    Krylov()(net, x)[1].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_callers_tensor_is_left_alone() -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    x = torch.randn(3, *event_shape)
    Krylov(memory="keep")(net, x)
    Exact()(net, x)
    assert not x.requires_grad


def test_adaptive_looks_at_each_sample_alone() -> None:
    net, event_shape = NETWORKS["conv_net"](0.97)
    net.double()
    x = torch.randn(5, *event_shape, dtype=torch.float64)
    estimator = AdaptiveKrylov(1e-2, probe=Frozen(seed=1))
    together = estimator(net, x, 3)[1]
    alone = torch.cat([estimator(net, row[None], 3)[1] for row in x])
    torch.testing.assert_close(together, alone)


def test_adaptive_meets_its_tolerance(problem: tuple[nn.Module, Tensor]) -> None:
    net, x = problem
    event_dim = x.dim() - 1
    with torch.no_grad():
        limit = same_probe(Krylov(25), 0)(net, x, event_dim)[1]
        estimate = same_probe(AdaptiveKrylov(1e-3, tail=NoTail()), 0)(net, x, event_dim)[1]
    assert (estimate - limit).abs().max() < 1e-3


def test_autocast_keeps_the_small_solves_in_single_precision() -> None:
    net, event_shape = NETWORKS["conv_net"](0.9)
    x = torch.randn(3, *event_shape, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        g, logdet = Krylov()(net, x, 3)
    assert logdet.dtype == torch.float32
    (g.float().sum() + logdet.sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_everything_on_the_meta_device() -> None:
    with torch.device("meta"):
        net, event_shape = NETWORKS["conv_net"](0.9)
        x = torch.randn(3, *event_shape, requires_grad=True)
        g, logdet = Krylov()(net, x, 3)
        (g.sum() + logdet.sum()).backward()
    assert x.grad is not None
    assert x.grad.is_meta


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Krylov(0), "terms"),
        (lambda: RussianRoulette(0), "terms"),
        (lambda: Krylov(num_probes=0), "num_probes"),
        (lambda: Krylov(memory="none"), "memory"),
        (lambda: AdaptiveKrylov(-1.0), "tolerance"),
        (lambda: Geometric(1.0), "ratio"),
        (lambda: Poisson(0.0), "rate"),
        (lambda: Exact(chunk_size=0), "chunk_size"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()


def test_the_largest_number_of_terms_is_called_by_its_name() -> None:
    with pytest.raises(ValueError, match="max_terms: "):
        AdaptiveKrylov(max_terms=0)
