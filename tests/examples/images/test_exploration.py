"""Interpolation, temperature, reconstruction and ranking, by value."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images import exploration
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.logdet import Exact
from pyro_resflow.transforms import UniformDequantization, initialize

PATHS = [exploration.linear, exploration.spherical]


@pytest.fixture
def flow() -> ResidualFlow:
    flow = ResidualFlow(
        (1, 4, 4), blocks=(2,), network=ConvBlock(8), end_blocks=0, logdet=Exact()
    ).double()
    initialize(flow, images(64))
    return flow


def images(number: int) -> torch.Tensor:
    return torch.rand(number, 1, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
def test_an_interpolation_starts_and_ends_at_the_images(path, flow):
    first, second = images(3), images(3)
    between = exploration.interpolate(flow, first, second, steps=5, path=path)
    assert between.shape == (5, 3, 1, 4, 4)
    torch.testing.assert_close(between[0], first)
    torch.testing.assert_close(between[-1], second)


def test_a_linear_interpolation_is_halfway_in_the_middle(flow):
    first, second = images(3), images(3)
    between = exploration.interpolate(flow, first, second, steps=3, path=exploration.linear)
    middle = (flow.inv(first) + flow.inv(second)) / 2
    torch.testing.assert_close(flow.inv(between[1]), middle)


def test_an_arc_keeps_the_length():
    start, end = torch.randn(2, 7, 20, dtype=torch.float64)
    end = end * (start.norm(dim=-1) / end.norm(dim=-1)).unsqueeze(-1)
    angle = torch.cosine_similarity(start, end, dim=-1).arccos()
    for fraction in torch.linspace(0, 1, 6, dtype=torch.float64):
        point = exploration.spherical(start, end, fraction)
        torch.testing.assert_close(point.norm(dim=-1), start.norm(dim=-1))
        travelled = torch.cosine_similarity(start, point, dim=-1).clamp(max=1).arccos()
        torch.testing.assert_close(travelled, fraction * angle, atol=1e-6, rtol=0)


def test_a_quarter_circle():
    start, end = torch.eye(2, dtype=torch.float64)
    third = exploration.spherical(start, end, torch.tensor(1 / 3))
    expected = torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)])
    torch.testing.assert_close(third, expected, check_dtype=False)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_an_arc_without_an_angle_is_a_line(factor):
    start = torch.randn(4, 6)
    end = factor * start
    middle = exploration.spherical(start, end, torch.tensor(0.5))
    torch.testing.assert_close(middle, (start + end) / 2, atol=1e-4, rtol=1e-4)


def test_noise_is_scaled_by_the_temperature(flow):
    cold, half, one = exploration.sample_at(flow, [0.0, 0.5, 1.0], number=4)
    mode = flow(torch.zeros(16, dtype=torch.float64))
    torch.testing.assert_close(cold, mode.expand_as(cold))
    torch.testing.assert_close(flow.inv(half), 0.5 * flow.inv(one))
    assert one.std(0).min() > 0


def test_a_reconstruction_returns_the_images(flow):
    given = images(5)
    result = exploration.reconstruct(flow, given)
    assert result.images is given
    assert 0 < result.error.max() < 1e-8


def test_the_error_is_that_of_the_pixels():
    given, returned = images(2), images(2)
    result = exploration.Reconstruction(given, returned)
    assert result.error.max() == (given - returned).abs().max()
    assert result.error.shape == given.shape


def test_images_are_ranked_by_their_likelihood(flow):
    integers = torch.randint(0, 256, (6, 1, 4, 4))
    distribution = Dequantized(flow.distribution(), UniformDequantization(256), 256)
    ranking = exploration.rank(distribution, integers, draws=50)
    assert bool((ranking.bits.diff() >= 0).all())
    assert ranking.images.flatten(1).unique(dim=0).shape[0] == 6
    again = exploration.rank(distribution, ranking.images.flip(0), draws=50)
    assert torch.equal(again.images[0], ranking.images[0])
    assert torch.equal(again.images[-1], ranking.images[-1])


def test_a_ranking_averages_its_draws():
    draws = iter([torch.tensor([1.0, 3.0, 2.0]), torch.tensor([5.0, 0.0, 2.0])])
    distribution = SimpleNamespace(bits_per_dim=lambda images: next(draws))
    ranking = exploration.rank(distribution, torch.arange(3), draws=2)
    assert ranking.bits.tolist() == [1.5, 2.0, 3.0]
    assert ranking.images.tolist() == [1, 2, 0]
