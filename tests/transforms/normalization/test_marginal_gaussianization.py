"""Marginal Gaussianization: exactness in float32, initialisation, features, learning."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_resflow import checkpoints
from pyro_resflow.checkpoints import TensorMismatchError
from pyro_resflow.checkpoints.structure import load_tensors
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.nn import GatedAttentionConditioner, GatedEncoder, initialize_by
from pyro_resflow.transforms import (
    CouplingStep,
    MarginalGaussianization,
    UniformDequantization,
    VariationalDequantization,
    initialize,
)
from pyro_resflow.transforms.normalization import marginal_gaussianization as module
from pyro_resflow.transforms.normalization.marginal_gaussianization import (
    FLOOR,
    MARGIN,
    OUTER_SHARE,
    SHARES,
)

GREY_LEVELS: dict[str, Callable[[int], Tensor]] = {
    "all": lambda bins: (torch.rand(300, 2, 4, 4) ** 3 * bins).long(),
    "one": lambda bins: torch.full((300, 2, 4, 4), bins // 2),
    "first": lambda bins: torch.zeros(300, 2, 4, 4).long(),
    "last": lambda bins: torch.full((300, 2, 4, 4), bins - 1),
    "rare": lambda bins: torch.randint(0, 4, (300, 2, 4, 4)) * ((bins - 1) // 3),
}

FEATURES = {"pooled": None, "channels": 2, "pixels": (2, 4, 4)}


def dequantized(levels: Tensor, bins: int) -> Tensor:
    """Values strictly inside the bins of grey levels."""
    return UniformDequantization(bins).distribution(levels).sample()


def fitted(
    levels: Tensor, bins: int, features: object = None, **options: bool
) -> MarginalGaussianization:
    """The transform with the marginal of grey levels."""
    gaussianize = MarginalGaussianization(bins, features, **options)
    gaussianize.fit((levels + 0.5) / bins)
    return gaussianize


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("kind", GREY_LEVELS)
@pytest.mark.parametrize("bins", [2, pytest.param(17, marks=pytest.mark.slow), 256, 65_536])
def test_float32_inverts_and_scores_as_float64_does(bins: int, kind: str, features: str) -> None:
    if bins > 256 and features == "pixels":
        pytest.skip("two million masses; the other features test the bins")
    torch.manual_seed(0)
    levels = GREY_LEVELS[kind](bins)
    gaussianize = fitted(levels, bins, FEATURES[features])
    x = dequantized(levels, bins)
    y, ladj = gaussianize.call_and_ladj(x)
    back, inverse_ladj = gaussianize.inverse_and_ladj(y)
    torch.testing.assert_close(inverse_ladj, ladj)
    exact_x = x.double().requires_grad_()
    exact_y, exact_ladj = copy.deepcopy(gaussianize).double().call_and_ladj(exact_x)
    (slope,) = torch.autograd.grad(exact_y.sum(), exact_x)
    # float32 rounds x, which moves y by its slope, and y, which moves x by the inverse slope
    eps = torch.finfo(torch.float32).eps
    of_quantile = 8 * (exact_y.abs() + 1)
    assert ((y - exact_y).abs() < eps * (slope + of_quantile)).all()
    assert ((back - x).abs() < eps * (1 + of_quantile / slope)).all()
    torch.testing.assert_close(ladj.double(), exact_ladj, rtol=3e-6, atol=3e-3)


@pytest.fixture
def smallest_share(monkeypatch: pytest.MonkeyPatch) -> float:
    """The smallest share of the uniform density, made the only one."""
    monkeypatch.setattr(module, "SHARES", SHARES[:1])
    return SHARES[0]


def mixture(counts: Tensor, share: float) -> Tensor:
    """The masses below 0, in each bin and above 1."""
    bins = len(counts)
    uniform = torch.tensor([MARGIN, *[(1 - 2 * MARGIN) / bins] * bins, MARGIN])
    shares = torch.cat([torch.zeros(1), (counts + 1) / (counts + 1).sum(), torch.zeros(1)])
    outer = OUTER_SHARE / bins
    end = 1 / bins - outer
    floor = torch.tensor([outer, end, *[1 / bins] * (bins - 2), end, outer])
    return (1 - FLOOR) * ((1 - share) * shares + share * uniform) + FLOOR * floor


def test_the_data_become_standard_normal(smallest_share: float) -> None:
    levels = (torch.rand(4000, 1, 4, 4) ** 4 * 256).long()
    levels[:2000] = 0  # half of the pixels are black
    y = fitted(levels, 256)(dequantized(levels, 256)).flatten().double()
    tenths = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    found = torch.special.ndtr(y.quantile(tenths))
    # the uniform shares, the counts of 1, and three standard errors of 64,000 draws
    allowed = FLOOR + smallest_share + 256 / 64_256 + 3 * 0.002
    torch.testing.assert_close(found, tenths, atol=allowed, rtol=0)


@pytest.mark.parametrize("share", SHARES)
def test_the_masses_mix_the_counts_with_uniform_densities(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARES", (share,))
    levels = torch.tensor([0, 0, 0, 1, 3]).reshape(5, 1, 1, 1)
    gaussianize = fitted(levels, 4)
    mass = mixture(torch.tensor([3.0, 1, 0, 1]), share)
    below, above, inside = (table[0] for table in gaussianize.tables())
    torch.testing.assert_close(inside, mass[1:-1])
    torch.testing.assert_close(below, mass.cumsum(0)[:-2])
    torch.testing.assert_close(above, mass.flip(0).cumsum(0).flip(0)[2:])
    # the middle of the second bin
    y = gaussianize(torch.full((1, 1, 1, 1), 0.375)).item()
    expected = torch.special.ndtri(mass[:2].sum() + mass[2] / 2).item()
    assert y == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bins", [2, 256, 65_536])
def test_the_ends_are_finite_and_the_map_continues_beyond_them(bins: int) -> None:
    gaussianize = fitted(torch.zeros(100, 1, 1, 1).long(), bins).double()
    x = torch.tensor([-0.01, 0.0, 1.0, 1.01], dtype=torch.float64).reshape(4, 1, 1, 1)
    y, ladj = gaussianize.call_and_ladj(x)
    assert y.flatten().diff().min() > 0
    below, _, _ = gaussianize.tables()
    torch.testing.assert_close(y[1, 0, 0, 0], torch.special.ndtri(below[0, 0]))
    torch.testing.assert_close((y[1] - y[0]) / 0.01, ladj[0].exp().reshape(1, 1, 1))
    torch.testing.assert_close(ladj[:2].diff(), torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(gaussianize.inverse_and_ladj(y)[0], x, rtol=0, atol=1e-12)
    far = torch.tensor([-80.0, 80.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    assert gaussianize.inv(far).isfinite().all()


@pytest.mark.parametrize("bins", [2, 17])
def test_its_own_samples_are_scored(bins: int) -> None:
    gaussianize = fitted(torch.randint(0, bins, (100, 1, 1, 1)), bins)
    x = gaussianize.inv(torch.linspace(-6, 6, 25).reshape(25, 1, 1, 1))
    assert gaussianize(x.clone()).isfinite().all()


def test_the_density_integrates_to_one() -> None:
    levels = (torch.rand(500, 1, 1, 1) ** 2 * 8).long()
    gaussianize = fitted(levels, 8).double()
    edges = torch.linspace(-1, 2, 400_001, dtype=torch.float64)
    x = ((edges[1:] + edges[:-1]) / 2).reshape(-1, 1, 1, 1)
    y, ladj = gaussianize.call_and_ladj(x)
    density = (ladj - 0.5 * y.flatten() ** 2 - 0.5 * math.log(2 * math.pi)).exp()
    assert (density * edges.diff()).sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("channels", range(1, 6))
def test_channels_have_their_own_marginals(channels: int, smallest_share: float) -> None:
    levels = (
        torch.rand(2000, channels, 2, 2) * (torch.arange(channels) + 1)[:, None, None]
    ).long()
    gaussianize = fitted(levels, 8, channels)
    mass = gaussianize.tables()[2]
    for channel in range(channels):
        counts = torch.bincount(levels[:, channel].flatten(), minlength=8).float()
        torch.testing.assert_close(mass[channel], mixture(counts, smallest_share)[1:-1])
    pooled = fitted(levels, 8).tables()[2][0]
    torch.testing.assert_close(pooled[1:-1], mass.mean(0)[1:-1], atol=1e-3, rtol=0)


def test_batches_are_counted_together() -> None:
    images = torch.rand(500, 1, 4, 4) ** 3
    whole, parts = MarginalGaussianization(32), MarginalGaussianization(32)
    whole.fit(images)
    parts.fit([images[:90], images[90:100], images[100:]])
    torch.testing.assert_close(parts.logits, whole.logits, rtol=0, atol=0)
    parts.fit(images[:90])  # what was counted before is forgotten
    assert not torch.equal(parts.logits, whole.logits)


def test_the_first_scored_batch_is_the_fallback() -> None:
    images = torch.rand(64, 1, 4, 4) ** 3
    gaussianize = MarginalGaussianization(16)
    normal = dist.Normal(torch.zeros(1, 4, 4), 1.0).to_event(3)
    density = dist.TransformedDistribution(normal, [gaussianize.inv])
    with pytest.raises(ValueError, match="this MarginalGaussianization is not initialised yet"):
        density.log_prob(images[:4])
    density.log_prob(images)
    other = MarginalGaussianization(16)
    other.fit(images)
    assert torch.equal(gaussianize.logits, other.logits)
    density.log_prob(images**2)
    assert torch.equal(gaussianize.logits, other.logits)


def test_initialize_sets_it_with_the_rest_of_a_flow() -> None:
    flow = ResidualFlow(
        (1, 4, 4),
        (1,),
        network=ConvBlock(4),
        end_blocks=0,
        input_map=MarginalGaussianization(16),
    )
    images = torch.rand(64, 1, 4, 4) ** 3
    initialize(flow, images, chunk_size=20)
    gaussianize = flow.encoder.parts[0]
    expected = MarginalGaussianization(16)
    expected.fit(images)
    assert torch.equal(gaussianize.logits, expected.logits)


def test_its_outputs_do_not_determine_it() -> None:
    normal = dist.Normal(torch.zeros(1, 4, 4), 1.0).to_event(3)
    density = dist.TransformedDistribution(normal, [MarginalGaussianization(16)])
    with pytest.raises(ValueError, match="its outputs do not determine it"):
        density.log_prob(torch.randn(32, 1, 4, 4))


def test_a_learnable_marginal_fits_other_data() -> None:
    torch.manual_seed(0)
    before, after = torch.rand(500, 1, 2, 2) ** 3, torch.rand(500, 1, 2, 2)
    normal = dist.Normal(torch.zeros(1, 2, 2), 1.0).to_event(3)
    gaussianize = MarginalGaussianization(8, learnable=True)
    gaussianize.fit(before)
    density = dist.TransformedDistribution(normal, [gaussianize.inv])
    optimizer = torch.optim.Adam(gaussianize.parameters(), lr=0.2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = -density.log_prob(after).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # the best masses are uniform on [0, 1]
    assert losses[0] > 0.5
    assert losses[-1] == pytest.approx(0, abs=0.02)


def test_a_fixed_marginal_has_no_parameters_and_can_become_learnable() -> None:
    fixed, learnable = MarginalGaussianization(8), MarginalGaussianization(8, learnable=True)
    fixed.fit(torch.rand(50, 1, 2, 2))
    assert not list(fixed.parameters())
    learnable.load_state_dict(fixed.state_dict())
    x = torch.rand(5, 1, 2, 2)
    torch.testing.assert_close(learnable(x), fixed(x), rtol=0, atol=0)


def test_gradients_of_the_masses_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    gaussianize = fitted((torch.rand(50, 2, 1, 1) * 4).long(), 4, 2, learnable=True).double()
    x = torch.rand(3, 2, 1, 1, dtype=torch.float64)

    def both(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(Pass(gaussianize), {"inner.logits": logits}, (x,))

    assert torch.autograd.gradcheck(both, (gaussianize.logits, x.requires_grad_()))


class Pass(torch.nn.Module):
    """Both results of a pass there and of a pass back, as a module."""

    def __init__(self, inner: MarginalGaussianization) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """y, the log-determinant, and those of the inverse at another point."""
        return (*self.inner.call_and_ladj(x), *self.inner.inverse_and_ladj(4 * x - 2))


def chosen_share(gaussianize: MarginalGaussianization) -> float:
    """The share of the uniform density, which alone has mass below 0."""
    return (gaussianize.logits.softmax(1)[0, 0] / MARGIN).item()


def test_smooth_images_get_a_nearly_linear_map() -> None:
    torch.manual_seed(0)
    steps = torch.randint(-1, 2, (200, 1, 12, 12)).cumsum(2).cumsum(3)
    smooth = (128 + 2 * torch.randint(-60, 60, (200, 1, 1, 1)) + steps).clamp(0, 255)
    assert chosen_share(fitted(smooth, 256)) >= 0.5
    # the same pixels at other places are no longer smooth
    order = torch.randperm(smooth.numel())
    shuffled = smooth.flatten()[order].reshape(smooth.shape) ** 2 // 256
    assert chosen_share(fitted(shuffled, 256)) <= SHARES[1]


def test_images_with_many_black_pixels_get_their_histogram() -> None:
    torch.manual_seed(0)
    bright = torch.rand(200, 1, 12, 12) < 0.2
    levels = bright * torch.randint(100, 256, bright.shape)
    assert chosen_share(fitted(levels, 256)) == pytest.approx(SHARES[0])


@pytest.mark.parametrize("event_shape", [(6,), (1,), (1, 1, 1), (5, 1, 1), (2, 1, 4), (2, 4, 1)])
@pytest.mark.parametrize("samples", [2, 200])
def test_events_with_few_neighbours_are_fitted(event_shape: tuple[int, ...], samples: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(samples, *event_shape)
    gaussianize = MarginalGaussianization(8, event_dim=len(event_shape))
    gaussianize.fit(x)
    assert min(abs(chosen_share(gaussianize) - share) for share in SHARES) < 1e-6
    torch.testing.assert_close(gaussianize.inverse_and_ladj(gaussianize(x))[0], x)


def test_fitting_draws_no_random_numbers_of_the_user() -> None:
    images = torch.rand(20, 1, 4, 4)
    state = torch.get_rng_state()
    first, second = MarginalGaussianization(8), MarginalGaussianization(8)
    first.fit(images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second.fit(images)
    assert torch.equal(first.logits, second.logits)


def test_a_state_without_masses_outside_is_loaded_as_it_was() -> None:
    logits = torch.tensor([[0.7, -0.3, 0.2, -1.1]])
    mass = (1 - FLOOR) * logits.softmax(1)[0] + FLOOR / 4
    gaussianize = MarginalGaussianization(4)
    gaussianize.load_state_dict({"logits": logits, "initialized": torch.tensor(1.0)})
    below, above, inside = (table[0] for table in gaussianize.tables())
    kept = torch.tensor([1 - OUTER_SHARE, 1, 1, 1 - OUTER_SHARE])
    torch.testing.assert_close(inside, mass * kept)
    torch.testing.assert_close(below[0], mass[0] * OUTER_SHARE)
    torch.testing.assert_close(above[-1], mass[-1] * OUTER_SHARE)


def test_tensors_of_a_file_without_masses_outside_are_loaded() -> None:
    state = {"logits": torch.tensor([[0.7, -0.3, 0.2, -1.1]]), "initialized": torch.tensor(1.0)}
    loaded, expected = MarginalGaussianization(4), MarginalGaussianization(4)
    load_tensors(loaded, state)
    expected.load_state_dict(state)
    assert torch.equal(loaded.logits, expected.logits)
    with pytest.raises(TensorMismatchError, match=r"'logits' has shape \(1, 5\), expected"):
        load_tensors(loaded, {**state, "logits": torch.zeros(1, 5)})


def test_it_is_saved_with_the_flow(tmp_path: Path) -> None:
    flow = ResidualFlow(
        (2, 4, 4),
        (1,),
        network=ConvBlock(4),
        end_blocks=0,
        input_map=MarginalGaussianization(16, 2, learnable=True),
    )
    initialize(flow, torch.rand(64, 2, 4, 4) ** 3)
    checkpoints.save(flow, tmp_path / "flow.safetensors")
    loaded = checkpoints.load(tmp_path / "flow.safetensors")
    gaussianize = loaded.encoder.parts[0]
    assert gaussianize.logits.requires_grad
    assert torch.equal(gaussianize.logits, flow.encoder.parts[0].logits)
    x = torch.rand(5, 2, 4, 4)
    torch.testing.assert_close(loaded.inv(x), flow.inv(x), rtol=0, atol=0)


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_learned_noise_stays_in_the_bin_that_the_map_takes_it_for(bins: int) -> None:
    torch.manual_seed(0)
    levels = torch.randint(0, bins, (16, 1, 4, 4))
    step, features = CouplingStep(GatedAttentionConditioner(4, 1)), GatedEncoder(4, 1)
    dequantize = VariationalDequantization((1, 4, 4), bins, 1, step=step, features=features)
    initialize_by(dequantize.condition(levels), [torch.randn(16, 1, 4, 4)])
    noise = 100 * torch.randn(16, 1, 4, 4)  # as far out as the sigmoid saturates
    v = dequantize.condition(levels)(noise)
    assert torch.equal((v * bins).floor().long(), levels)
    gaussianize = fitted(levels, bins)
    mass = gaussianize.tables()[2][0]
    y, ladj = gaussianize.call_and_ladj(v)
    entries = (mass[levels] * bins).log() + 0.5 * y**2 + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(ladj, entries.sum((1, 2, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MarginalGaussianization(1), "bins: expected 2 to 65536 grey levels, got 1"),
        (lambda: MarginalGaussianization(65_537), "bins: expected 2 to 65536"),
        (lambda: MarginalGaussianization(event_dim=2), "event_dim: expected 1"),
        (lambda: MarginalGaussianization(8, (2, 2)), "num_features: expected None, a number or 3"),
        (lambda: MarginalGaussianization(8, 0), "num_features: expected at least 1"),
        (
            lambda: ResidualFlow((1, 4, 4), (1,), input_map=MarginalGaussianization(8, 3)),
            r"num_features: expected None, 1 channels or all of \(1, 4, 4\)",
        ),
        (
            lambda: fitted(torch.zeros(9, 1, 1, 1), 8)(torch.full((1, 1, 1, 1), 255.0)),
            r"x: expected pixels in \[0, 1\], got values from 255",
        ),
        (
            lambda: MarginalGaussianization(8).fit(torch.full((9, 1, 1, 1), torch.nan)),
            "x: expected finite values to initialise this MarginalGaussianization",
        ),
        (
            lambda: MarginalGaussianization(8).fit(torch.rand(1, 1, 1, 1)),
            "x: expected at least two samples",
        ),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
