from __future__ import annotations

import math
from pathlib import Path

import pyro
import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")

import matplotlib

from examples.density_2d import DATA, checkerboard, main, pinwheel, rings, two_moons


@pytest.mark.parametrize("name", DATA)
def test_data_are_points_around_the_origin(name: str) -> None:
    points = DATA[name](20000)
    assert points.shape == (20000, 2)
    assert points.mean(0).abs().max() < 0.1
    assert 1 < points.abs().max() < 8


@pytest.mark.parametrize("name", DATA)
def test_data_follow_pyros_seed(name: str) -> None:
    pyro.set_rng_seed(3)
    first = DATA[name](5)
    pyro.set_rng_seed(3)
    assert torch.equal(DATA[name](5), first)


def test_checkerboard_fills_half_of_the_squares_evenly() -> None:
    points = checkerboard(20000)
    squares = ((points + 4) / 2).floor().long()
    assert set(squares.flatten().tolist()) == {0, 1, 2, 3}
    assert ((squares.sum(-1)) % 2 == 0).all()
    counts = (4 * squares[:, 0] + squares[:, 1]).bincount(minlength=16)
    assert (counts[counts > 0] - 2500).abs().max() < 5 * 2500**0.5


def test_rings_lie_near_their_radii() -> None:
    radius = rings(20000).norm(dim=-1)
    distance = torch.minimum((radius - 1.5).abs(), (radius - 3.5).abs())
    assert distance.max() < 1
    assert abs((radius > 2.5).float().mean() - 0.5) < 0.02


def test_moons_lie_near_two_half_circles() -> None:
    points = two_moons(20000)
    centre = torch.tensor([1.0, 0.5])
    distances = torch.stack([(points + centre).norm(dim=-1), (points - centre).norm(dim=-1)])
    assert ((distances - 2).abs().amin(0) < 0.75).all()


def test_pinwheel_is_the_same_after_a_fifth_of_a_turn() -> None:
    points = pinwheel(20000)
    angle = 2 * math.pi / 5
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    edges = [torch.linspace(-5, 5, 11)] * 2
    counts = [torch.histogramdd(p, edges).hist for p in (points, points @ turn)]
    deviation = (counts[0] - counts[1]) / (counts[0] + counts[1]).clamp_min(1).sqrt()
    assert deviation.abs().max() < 5


def test_few_steps_write_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("agg")
    main(
        data=("checkerboard", "rings"),
        steps=3,
        blocks=2,
        width=8,
        batch_size=32,
        points=100,
        folder=tmp_path / "new",
    )
    printed = capsys.readouterr().out
    assert "checkerboard" in printed
    assert "bits" in printed
    assert "rings" in printed
    assert (tmp_path / "new" / "density_2d.png").stat().st_size > 1000
