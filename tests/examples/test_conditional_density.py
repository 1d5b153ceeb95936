from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")

import matplotlib

from examples.conditional_density import (
    draw_pairs,
    fit,
    held_out,
    main,
    normal_regression,
    residual_flow,
    truth,
)


def test_truth_is_a_density_at_each_input() -> None:
    x = torch.linspace(-3, 3, 7)[:, None]
    y = torch.linspace(-8, 8, 4001).reshape(-1, 1, 1).expand(-1, 7, 1)
    volume = truth(x).log_prob(y).exp().sum(0) * 16 / 4000
    torch.testing.assert_close(volume, torch.ones(7), atol=1e-4, rtol=0)


def test_truth_has_one_mode_on_the_left_and_two_on_the_right() -> None:
    y = torch.linspace(-4, 4, 2001)[:, None]
    for x, modes in ((-3.0, 1), (2.0, 2)):
        height = truth(torch.tensor([x])).log_prob(y)
        peaks = (height[1:-1] > height[:-2]) & (height[1:-1] > height[2:])
        assert peaks.sum() == modes


def test_pairs_follow_the_truth() -> None:
    x, y = draw_pairs(20000)
    assert x.shape == y.shape == (20000, 1)
    assert x.abs().max() <= 3
    density = truth(x)
    score = (y - density.mean) / density.variance.sqrt()
    assert score.mean().abs() < 4 / 20000**0.5
    assert (score.square().mean() - 1).abs() < 4 * score.square().std() / 20000**0.5


def test_nothing_beats_the_truth() -> None:
    x, y = draw_pairs(5000)
    conditional = residual_flow(blocks=1, width=8)
    nats, excess = held_out(conditional, x, y)
    assert nats.shape == excess.shape == (5000,)
    assert excess.mean() > 4 * excess.std() / 5000**0.5


def test_few_steps_bring_the_flow_below_the_normal() -> None:
    x, y = draw_pairs(500)
    excess = []
    for conditional in (residual_flow(blocks=3, width=16), normal_regression()):
        fit(conditional, lambda n: (x, y), steps=120, batch_size=500, learning_rate=1e-2)
        excess.append(held_out(conditional, *draw_pairs(5000))[1])
    flow, normal = excess
    error = (flow.var() / 5000 + normal.var() / 5000).sqrt()
    assert normal.mean() - flow.mean() > 4 * error


def test_few_steps_write_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("agg")
    main(
        steps=3,
        blocks=1,
        width=8,
        batch_size=32,
        points=100,
        folder=tmp_path / "new",
    )
    printed = capsys.readouterr().out
    for name in ("truth", "residual flow", "normal regression"):
        assert name in printed
    assert (tmp_path / "new" / "conditional_density.png").stat().st_size > 1000
