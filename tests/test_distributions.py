"""Dequantized: honest probabilities on a problem small enough to integrate."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConvBlock, MLPBlock, ResidualFlow
from pyro_resflow.logdet import Exact
from pyro_resflow.transforms import UniformDequantization


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


def dequantized(flow: ResidualFlow) -> Dequantized:
    return Dequantized(flow.distribution(), UniformDequantization(BINS), BINS)


@torch.no_grad()
def cell_averages(flow: ResidualFlow, nodes: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """log P of each image by quadrature over its cell, and the bound, its mean log-density."""
    import numpy

    points, weights = numpy.polynomial.legendre.leggauss(nodes)
    u = torch.tensor((points + 1) / 2)
    w = torch.tensor(weights / 2)
    grid = torch.cartesian_prod(u, u).reshape(-1, 1, 1, 1, 2)
    weight = torch.cartesian_prod(w, w).prod(-1)
    log_p = flow.distribution().log_prob((IMAGES.double() + grid) / BINS) - 2 * math.log(BINS)
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
        draws = torch.stack([dequantized(flow).log_prob(IMAGES) for _ in range(400)])
    z = (draws.mean(0) - bound) / (draws.std(0) / len(draws) ** 0.5)
    assert z.abs().max() < 4
    assert draws.mean(0).exp().sum() <= 1
    assert torch.all(draws.mean(0) < exact)


def test_bound_with_the_stochastic_log_det_has_the_same_mean(flow: ResidualFlow) -> None:
    stochastic = tiny_flow()
    stochastic.load_state_dict(flow.state_dict())
    from pyro_resflow.logdet import Krylov
    from pyro_resflow.transforms import Residual

    for module in stochastic.modules():
        if isinstance(module, Residual):
            module.logdet = Krylov(1)
    _, bound = cell_averages(flow)
    with torch.no_grad():
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
        (IMAGES.double() + 0.5, "found a fraction"),
        (torch.full((2, 1, 1, 2), float("nan")), "found nan"),
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
    with pytest.raises(ValueError, match="built for 256 grey levels, got 16"):
        Dequantized(flow.distribution(), UniformDequantization(256), 16)


def test_single_bin_is_refused(flow: ResidualFlow) -> None:
    with pytest.raises(ValueError, match="bins"):
        Dequantized(flow.distribution(), UniformDequantization(4), 1)
