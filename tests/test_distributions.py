"""Dequantized gives the probabilities of a problem that is small enough to integrate."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConvBlock, MLPBlock, ResidualFlow
from pyro_resflow.logdet import Exact, Krylov
from pyro_resflow.transforms import UniformDequantization, set_logdet


def tiny_flow(logdet: object = None) -> ResidualFlow:
    """A flow over images of two pixels, trained a little so that its density is not flat."""
    torch.manual_seed(0)
    flow = ResidualFlow(
        (1, 1, 2),
        (2,),
        network=ConvBlock(8, kernel_sizes=(1, 1, 1)),
        end_blocks=2,
        end_network=MLPBlock((16,)),
        logdet=logdet if logdet is not None else Exact(),
    ).double()
    data = torch.rand(64, 1, 1, 2, dtype=torch.float64) ** 2
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (-flow.distribution().log_prob(data).mean()).backward()
        optimizer.step()
    return flow


BINS = 4
IMAGES = torch.tensor(list(itertools.product(range(BINS), repeat=2))).reshape(-1, 1, 1, 2)


@pytest.fixture(scope="module")
def flow() -> ResidualFlow:
    return tiny_flow()


def dequantized(flow: ResidualFlow, **options: int) -> Dequantized:
    return Dequantized(flow.distribution(), UniformDequantization(BINS), BINS, **options)


@torch.no_grad()
def cell_densities(flow: ResidualFlow, nodes: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(v) - log q(v|x) at the nodes of each image's cell, and the nodes' weights."""
    import numpy

    points, weights = numpy.polynomial.legendre.leggauss(nodes)
    u = torch.tensor((points + 1) / 2)
    w = torch.tensor(weights / 2)
    grid = torch.cartesian_prod(u, u).reshape(-1, 1, 1, 1, 2)
    log_p = flow.distribution().log_prob((IMAGES.double() + grid) / BINS) - 2 * math.log(BINS)
    return log_p, torch.cartesian_prod(w, w).prod(-1)


def cell_averages(flow: ResidualFlow) -> tuple[torch.Tensor, torch.Tensor]:
    """log P of each image by quadrature over its cell, and the bound, its mean log-density."""
    log_p, weight = cell_densities(flow)
    exact = torch.logsumexp(log_p + weight.log()[:, None], dim=0)
    return exact, (weight[:, None] * log_p).sum(0)


def test_bound_lies_below_the_integrated_probability_and_sums_to_less_than_one(
    flow: ResidualFlow,
) -> None:
    exact, bound = cell_averages(flow)
    assert exact.exp().sum() <= 1
    assert exact.exp().sum() > 0.8  # the rest lies outside [0, 1], inside the logit's margin
    assert torch.all(bound < exact)
    with torch.no_grad():
        draws = dequantized(flow).log_prob(IMAGES.expand(400, *IMAGES.shape))
    z = (draws.mean(0) - bound) / (draws.std(0) / len(draws) ** 0.5)
    assert z.abs().max() < 4
    assert draws.mean(0).exp().sum() <= 1
    assert torch.all(draws.mean(0) < exact)


def test_bound_of_two_samples_is_the_integral_over_both(flow: ResidualFlow) -> None:
    log_p, weight = cell_densities(flow, nodes=12)
    exact, bound = cell_averages(flow)
    pairs = torch.logaddexp(log_p[:, None], log_p[None]) - math.log(2)
    expected = torch.einsum("i,j,ijn->n", weight, weight, pairs)
    assert torch.all(bound < expected)
    assert torch.all(expected < exact)
    with torch.no_grad():
        two = dequantized(flow, num_samples=2)
        draws = two.log_prob(IMAGES.expand(400, *IMAGES.shape))
    z = (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5)
    assert z.abs().max() < 4


def test_bound_rises_with_the_samples_to_the_integrated_probability(flow: ResidualFlow) -> None:
    exact, bound = cell_averages(flow)
    with torch.no_grad():
        many = dequantized(flow, num_samples=64, chunk_size=50)
        draws = many.log_prob(IMAGES.expand(200, *IMAGES.shape))
    over_images = draws.mean(1)
    gain = over_images.mean() - bound.mean()
    assert gain > 4 * over_images.std() / len(draws) ** 0.5
    # the mean over its draws of the importance-weighted likelihood is the likelihood itself
    z = (draws.exp().mean(0) - exact.exp()) / (draws.exp().std(0) / len(draws) ** 0.5)
    assert z.abs().max() < 4
    gap = exact - draws.mean(0)
    assert torch.all(gap < 0.05 * (exact - bound) + 4 * draws.std(0) / len(draws) ** 0.5)


def test_chunks_add_up_to_all_samples(flow: ResidualFlow) -> None:
    results = []
    for chunk_size in (None, 3, 1):
        torch.manual_seed(1)
        d = dequantized(flow, num_samples=7, chunk_size=chunk_size)
        results.append(d.log_prob(IMAGES))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_gradient_of_several_samples_is_the_weighted_one(flow: ResidualFlow) -> None:
    losses = []
    for chunk_size in (None, 2):
        torch.manual_seed(1)
        flow.zero_grad()
        dequantized(flow, num_samples=5, chunk_size=chunk_size).log_prob(IMAGES).sum().backward()
        losses.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    torch.testing.assert_close(losses[1], losses[0])
    assert losses[0].isfinite().all()


def test_noisy_log_det_is_refused_for_several_samples_only(flow: ResidualFlow) -> None:
    noisy = copy.deepcopy(flow)
    set_logdet(noisy, Krylov())
    dequantized(noisy).log_prob(IMAGES)
    several = dequantized(noisy, num_samples=2)
    for d in (several, several.expand([16])):
        with pytest.raises(ValueError, match=r"num_samples: Krylov draws .*set_logdet"):
            d.log_prob(IMAGES)
    set_logdet(noisy, Exact())
    assert several.log_prob(IMAGES).isfinite().all()


def test_noisy_log_det_inside_a_wrapped_distribution_is_found() -> None:
    flow = ResidualFlow((1, 1, 2), (1,), network=ConvBlock(4), end_blocks=0, logdet=Krylov())
    wrapped = dist.TransformedDistribution(
        flow.distribution().expand([3]), [torch.distributions.AffineTransform(0, 1, event_dim=3)]
    )
    with pytest.raises(ValueError, match="num_samples: Krylov"):
        Dequantized(wrapped, UniformDequantization(4), 4, num_samples=2).log_prob(IMAGES[:3])


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"chunk_size": 0}])
def test_bad_numbers_of_samples_are_named(flow: ResidualFlow, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="num_samples, chunk_size: expected at least 1"):
        dequantized(flow, **options)


def test_several_samples_survive_expand_and_plates(flow: ResidualFlow) -> None:
    d = dequantized(flow, num_samples=3, chunk_size=2)
    assert d.expand([16]).log_prob(IMAGES).shape == (16,)
    assert d.expand([16]).num_samples == 3
    assert d.log_prob(IMAGES.reshape(4, 4, 1, 1, 2)).shape == (4, 4)
    assert d.log_prob(IMAGES[0]).shape == ()


@pytest.mark.parametrize("num_samples", [1, 3])
def test_image_broadcasts_with_the_batch(flow: ResidualFlow, num_samples: int) -> None:
    d = dequantized(flow, num_samples=num_samples).expand([3])
    together = d.log_prob(IMAGES[5])
    assert together.shape == (3,)
    assert together.unique().numel() == 3  # each of its own noise


def test_evaluation_has_a_standard_error(flow: ResidualFlow) -> None:
    d = dequantized(flow)
    torch.manual_seed(1)
    found = d.evaluate(IMAGES, batch_size=16)
    torch.manual_seed(1)
    bits = d.bits_per_dim(IMAGES)
    assert found.mean == pytest.approx(bits.mean().item())
    assert found.standard_error == pytest.approx((bits.var() / 16).sqrt().item())
    assert found.images == 16
    assert d.evaluate(IMAGES, batch_size=5).images == 16
    with pytest.raises(ValueError, match="at least two images"):
        d.evaluate(IMAGES[:1])


def test_bound_with_the_stochastic_log_det_has_the_same_mean(flow: ResidualFlow) -> None:
    stochastic = copy.deepcopy(flow)
    set_logdet(stochastic, Krylov(1))
    _, bound = cell_averages(flow)
    with torch.no_grad():
        # one call at a time: the samples of a call share the roulette's number of terms
        draws = torch.stack([dequantized(stochastic).log_prob(IMAGES) for _ in range(400)])
    z = (draws.mean(0) - bound) / (draws.std(0) / len(draws) ** 0.5)
    assert z.abs().max() < 4


def test_samples_follow_the_integrated_probability(flow: ResidualFlow) -> None:
    exact, _ = cell_averages(flow)
    samples = dequantized(flow).sample((4000,)).reshape(4000, 2)
    assert samples.dtype == torch.long
    index = samples[:, 0] * BINS + samples[:, 1]
    inner = [5, 6, 9, 10]  # the flow's mass outside [0, 1] falls on the border's grey levels
    for image in inner:
        p = exact[image].exp().item()
        found = (index == image).double().mean().item()
        assert abs(found - p) < 4 * (p * (1 - p) / 4000) ** 0.5


def test_bits_per_dim_is_the_code_length(flow: ResidualFlow) -> None:
    d = dequantized(flow)
    torch.manual_seed(1)
    bits = d.bits_per_dim(IMAGES)
    torch.manual_seed(1)
    torch.testing.assert_close(bits, -d.log_prob(IMAGES) / (2 * math.log(2)))


def test_uninformed_flow_costs_the_bits_of_its_grey_levels() -> None:
    uniform = dist.Uniform(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)).to_event(3)
    d = Dequantized(uniform, UniformDequantization(16), 16)
    bits = d.bits_per_dim(torch.randint(0, 16, (5, 1, 4, 4)))
    torch.testing.assert_close(bits, torch.full((5,), 4.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.float32, torch.float64])
def test_any_type_of_integer_is_scored(flow: ResidualFlow, dtype: torch.dtype) -> None:
    assert torch.isfinite(dequantized(flow).log_prob(IMAGES.to(dtype))).all()


def test_expands_and_scores_in_plates(flow: ResidualFlow) -> None:
    images = IMAGES[:6]

    def model() -> None:
        with pyro.plate("images", 6):
            pyro.sample("x", dequantized(flow), obs=images)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (6,)
    assert dequantized(flow).expand([3]).sample((2,)).shape == (2, 3, 1, 1, 2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (IMAGES.double() + 0.5, "got a fraction"),
        (torch.full((2, 1, 1, 2), float("nan")), "got nan"),
        (IMAGES - 1, "got values from -1 to 2"),
        (IMAGES + 1, "got values from 1 to 4"),
        (
            torch.zeros(2, 1, 2, 2, dtype=torch.long),
            r"expected images of shape \(\*batch, 1, 1, 2",
        ),
    ],
)
def test_bad_images_are_named(flow: ResidualFlow, bad: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dequantized(flow).log_prob(bad)


def test_flow_over_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="flow_dist"):
        Dequantized(dist.Normal(torch.zeros(3), 1).to_event(1), UniformDequantization(4), 4)


def test_dequantizer_of_other_bins_is_refused(flow: ResidualFlow) -> None:
    with pytest.raises(ValueError, match="expected 256 grey levels, as the dequantizer, got 16"):
        Dequantized(flow.distribution(), UniformDequantization(256), 16)


def test_single_bin_is_refused(flow: ResidualFlow) -> None:
    with pytest.raises(ValueError, match="bins"):
        Dequantized(flow.distribution(), UniformDequantization(4), 1)
