from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")

import matplotlib

from examples.hierarchical_prior import (
    NOISE,
    Groups,
    Hierarchy,
    design,
    fit,
    main,
    sample,
    simulate,
)
from pyro_resflow import residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.transforms import ActNorm, Inverse


def test_effects_lie_near_a_circle() -> None:
    data = simulate(5000, 3)
    radius = data.effects.norm(dim=-1)
    assert abs(radius.mean() - 2) < 4 * 0.1 / 5000**0.5
    assert data.effects.mean(0).abs().max() < 0.1
    assert data.x.shape == data.y.shape == (5000, 3)


def test_points_lie_about_the_lines_of_the_effects() -> None:
    data = simulate(2000, 4)
    error = data.y - data.effects[:, :1] - data.effects[:, 1:] * data.x
    assert abs(error.std() - NOISE) < 4 * NOISE / (2 * 8000) ** 0.5
    without = Groups(data.effects, data.x, data.y - error)
    torch.testing.assert_close(without.least_squares(), data.effects, atol=1e-2, rtol=1e-2)


def conjugate_posterior(data: Groups, transform: Inverse) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the effects under an independent normal prior."""
    norm = transform.inv
    precision = torch.diag((2 * norm.log_scale).exp())
    mean = -norm.shift / norm.log_scale.exp()
    columns = design(data.x)
    total = precision + columns.mT @ columns / NOISE**2
    weighted = precision @ mean + (columns.mT @ data.y[..., None])[..., 0] / NOISE**2
    covariance = total.inverse()
    return (covariance @ weighted[..., None])[..., 0], covariance.diagonal(dim1=1, dim2=2).sqrt()


def normal_hierarchy(groups: int) -> Hierarchy:
    """One whose posterior is known: a fixed normal prior, and the noise given."""
    hierarchy = Hierarchy(simulate(groups, 5), Inverse(ActNorm(2)))
    hierarchy.transform.requires_grad_(False).eval()
    hierarchy.model = poutine.condition(hierarchy.model, {"noise": torch.tensor(NOISE)})
    return hierarchy


def test_svi_finds_the_posterior_where_it_is_normal() -> None:
    hierarchy = normal_hierarchy(30)
    hierarchy.guide = poutine.block(hierarchy.guide, hide=["noise"])
    guide = fit(hierarchy, steps=400, learning_rate=3e-2)
    mean, std = conjugate_posterior(hierarchy.data, hierarchy.transform)
    assert ((guide.mean - mean) / std).abs().mean() < 0.1
    assert (guide.stddev / std).log().abs().mean() < 0.1


def test_nuts_samples_the_posterior_where_it_is_known() -> None:
    pyro.set_rng_seed(0)
    hierarchy = normal_hierarchy(4)
    start = hierarchy.data.least_squares()
    draws, diagnostics = sample(hierarchy, start, samples=150, warmup=80)
    mean, std = conjugate_posterior(hierarchy.data, hierarchy.transform)
    independent = diagnostics["n_eff"].clamp(10, len(draws))
    assert ((draws.mean(0) - mean) / (std / independent.sqrt())).abs().max() < 4
    assert ((draws.std(0) / std).log() / (1 / (2 * independent)).sqrt()).abs().max() < 4


def test_density_that_nuts_sees_is_one_function_of_the_effects() -> None:
    flow = residual_flow(2, 2, [8], fast="density", logdet=Exact())
    hierarchy = Hierarchy(simulate(6, 3), flow)
    flow.requires_grad_(False).eval()
    effects = torch.randn(6, 2, dtype=torch.float32).requires_grad_()
    values = {"effects": effects, "noise": torch.tensor(0.4)}

    def log_density(at: Tensor) -> Tensor:
        conditioned = poutine.condition(hierarchy.model, {**values, "effects": at})
        return poutine.trace(conditioned).get_trace().log_prob_sum()

    assert torch.equal(log_density(effects), log_density(effects))
    (gradient,) = torch.autograd.grad(log_density(effects), effects)
    direction, step = torch.randn(6, 2), 1e-2
    with torch.no_grad():
        difference = log_density(effects + step * direction) - log_density(
            effects - step * direction
        )
    expected = (gradient * direction).sum()
    assert abs(difference / (2 * step) - expected) < 0.02 * (1 + expected.abs())


def test_few_steps_write_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("agg")
    main(
        groups=10,
        steps=3,
        blocks=1,
        width=8,
        samples=4,
        warmup=2,
        folder=tmp_path / "new",
    )
    printed = capsys.readouterr().out
    for line in ("normal prior", "flow prior", "NUTS", "r-hat"):
        assert line in printed
    assert (tmp_path / "new" / "hierarchical_prior.png").stat().st_size > 1000
