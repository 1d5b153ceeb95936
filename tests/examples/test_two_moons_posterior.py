from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import matplotlib

from examples.conditional_density import fit
from examples.two_moons_posterior import (
    CENTRE,
    PRIOR,
    Posterior,
    build,
    c2st,
    crescent,
    log_likelihood,
    main,
    simulate,
    simulator_signal,
)

CORNER = torch.tensor([-0.05, 1.2])
"""An observation whose posterior the prior cuts off."""


def square(cells: int) -> torch.Tensor:
    """Centres of the cells of a fine grid over the prior's square, shape ``(cells^2, 2)``."""
    centres = (2 * torch.arange(cells) + 1) / cells - 1
    return torch.cartesian_prod(centres, centres)


def test_noise_lies_on_the_right_half_of_a_circle() -> None:
    offset = crescent(20000) - CENTRE
    assert (offset[:, 0] >= 0).all()
    assert abs(offset.norm(dim=-1).mean() - 0.1) < 5e-4
    assert abs(offset.norm(dim=-1).std() - 0.01) < 5e-4
    assert abs(offset[:, 1].mean()) < 2e-3


def test_two_parameters_that_mirror_each_other_simulate_the_same() -> None:
    theta = PRIOR.sample((100,))
    mirrored = -theta.flip(-1)
    torch.testing.assert_close(simulator_signal(mirrored), simulator_signal(theta))
    x = simulate(theta)
    torch.testing.assert_close(log_likelihood(mirrored, x), log_likelihood(theta, x))


@pytest.mark.parametrize("theta", [[0.0, 0.0], [0.4, -0.7]])
def test_likelihood_integrates_to_one(theta: list[float]) -> None:
    at = torch.tensor(theta)
    middle = simulator_signal(at) + CENTRE
    x = middle + 0.2 * square(800)
    volume = log_likelihood(at, x).exp().mean() * 0.4**2
    assert abs(volume - 1) < 2e-3


@pytest.mark.parametrize("x", [torch.zeros(2), CORNER])
def test_exact_draws_follow_prior_times_likelihood(x: torch.Tensor) -> None:
    posterior, cells, blocks = Posterior(x), 1000, 20
    weights = log_likelihood(square(cells), x).exp().reshape(cells, cells)
    evidence = weights.mean() * 4
    kept = posterior.log_evidence
    assert abs(kept - evidence.log()) < 5 / (1e5 * evidence / 2) ** 0.5

    side = cells // blocks
    expected = weights.reshape(blocks, side, blocks, side).sum((1, 3)) / weights.sum()
    draws = posterior.sample(20000)
    edges = [torch.linspace(-1, 1, blocks + 1)] * 2
    counts = torch.histogramdd(draws, edges).hist
    deviation = (counts - 20000 * expected) / (20000 * expected).clamp_min(1).sqrt()
    assert counts.sum() == 20000
    assert deviation.abs().max() < 5


def test_log_density_is_normalised() -> None:
    volume = Posterior(CORNER).log_prob(square(1000)).exp().mean() * 4
    assert abs(volume - 1) < 0.05


def test_observation_out_of_reach_is_named() -> None:
    with pytest.raises(ValueError, match="hardly any noise"):
        Posterior(torch.tensor([3.0, 3.0]))


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.5), (1.0, 0.691), (10.0, 1.0)])
def test_classifier_is_as_good_as_the_best(shift: float, expected: float) -> None:
    # two normals a distance d apart are told apart with accuracy Phi(d / 2)
    first, second = torch.randn(1000, 2), torch.randn(1000, 2)
    second[:, 0] += shift
    assert abs(c2st(first, second) - expected) < 4 * 0.5 / 2000**0.5


def test_few_steps_learn_more_than_the_prior_knows() -> None:
    theta = PRIOR.sample((2000,))
    x = simulate(theta)
    conditional = build(blocks=2, width=16)
    fit(
        conditional,
        lambda n: (x[:1000], theta[:1000]),
        steps=40,
        batch_size=1000,
        learning_rate=3e-2,
    )
    with torch.no_grad():
        gain = conditional.condition(x[1000:]).log_prob(theta[1000:]) + math.log(4)
    assert gain.mean() > 4 * gain.std() / 1000**0.5


def test_few_steps_write_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("agg")
    main(
        simulations=100,
        steps=3,
        blocks=1,
        width=8,
        batch_size=32,
        observations=2,
        points=50,
        folder=tmp_path / "new",
    )
    printed = capsys.readouterr().out
    assert printed.count("C2ST") == 3
    assert "KL" in printed
    assert (tmp_path / "new" / "two_moons_posterior.png").stat().st_size > 1000
