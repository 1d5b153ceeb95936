from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine

pytest.importorskip("arviz")
pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("zuko")

import matplotlib

from examples.guides import (
    GUIDES,
    PLANES,
    fit,
    fitting_width,
    initialized_guide,
    log_density,
    main,
    size,
    spline,
)
from examples.posteriors import (
    EFFECTS,
    ERRORS,
    GROUP,
    OUTCOME,
    PREDICTOR,
    PROBLEMS,
    eight_schools,
    eight_schools_moments,
    group_effects_moments,
)
from examples.training import Budget
from pyro_resflow.guides import AutoResidualFlow


@pytest.fixture(autouse=True)
def seed() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.mark.parametrize("name", PLANES)
def test_closed_forms_are_the_moments_of_the_models_own_draws(name: str) -> None:
    problem = PROBLEMS[name]
    truth = problem.moments(0)
    with pyro.plate("draws", 20000):
        trace = poutine.trace(problem.model).get_trace()
    for variable, mean in truth.mean.items():
        draws = trace.nodes[variable]["value"]
        z = (draws.mean(0) - mean) / (draws.std(0) / 20000**0.5)
        assert (z.abs() < 5).all()
        if name == "banana" or variable == "v":  # the variance of x in the funnel has no use here
            torch.testing.assert_close(draws.std(0), truth.std[variable], rtol=0.05, atol=0)


def test_eight_schools_by_quadrature_agree_with_importance_sampling() -> None:
    truth = eight_schools_moments(0)
    draws = 400_000
    with pyro.plate("draws", draws, dim=-2):
        model = poutine.block(eight_schools, hide=["effect"])
        trace = poutine.trace(model).get_trace()
    theta = trace.nodes["theta"]["value"]
    likelihood = pyro.distributions.Normal(theta, ERRORS).log_prob(EFFECTS).sum(-1).double()
    weight = likelihood.softmax(0)
    for name, mean in truth.mean.items():
        values = trace.nodes[name]["value"].double().reshape(draws, -1)
        found = weight @ values
        error = (weight.square() @ (values - found).square()).sqrt()
        assert ((found - mean).abs() < 5 * error).all()
    evidence = likelihood.exp()
    error = evidence.std() / draws**0.5
    assert (evidence.mean() - torch.tensor(truth.log_evidence).double().exp()).abs() < 5 * error


def test_group_effects_by_quadrature_agree_with_importance_sampling() -> None:
    truth = group_effects_moments(0)
    draws, size = 1000, len(OUTCOME)
    # spreads from a proposal around their posterior; all else is integrated out
    proposal = pyro.distributions.LogNormal(
        torch.tensor([-1.6, -0.3]).double(), torch.tensor([1.0, 0.2]).double()
    )
    spreads = proposal.sample((draws,))
    tau, sigma = spreads.square().unbind(-1)
    same = (GROUP[:, None] == GROUP).double()
    fixed = 25 + 25 * PREDICTOR[:, None] * PREDICTOR
    covariance = fixed + tau[:, None, None] * same + sigma[:, None, None] * torch.eye(size)
    likelihood = pyro.distributions.MultivariateNormal(torch.zeros(size).double(), covariance)
    prior = pyro.distributions.HalfCauchy(torch.ones(2).double()).log_prob(spreads)
    ratio = (prior - proposal.log_prob(spreads)).sum(-1) + likelihood.log_prob(OUTCOME.double())
    evidence = ratio.logsumexp(0) - torch.tensor(float(draws)).log()
    weight = ratio.softmax(0)
    effective = 1 / weight.square().sum()
    assert effective > 100
    assert abs(evidence - truth.log_evidence) < 5 * (1 / effective - 1 / draws).sqrt()
    for name, each in (("tau", spreads[:, 0]), ("sigma", spreads[:, 1])):
        found = weight @ each
        error = (weight.square() @ (each - found).square()).sqrt()
        assert abs(found - truth.mean[name]) < 5 * error
    assert abs(truth.mean["effect"].mean() - truth.mean["mu"]) < truth.std["mu"]


@pytest.mark.parametrize("name", PROBLEMS)
def test_latent_dimensions_are_as_stated(name: str) -> None:
    guide = AutoResidualFlow(PROBLEMS[name].model, blocks=1, hidden_dims=[4])
    guide()
    assert guide.latent_dim == PROBLEMS[name].latent_dim


@pytest.mark.parametrize("name", PLANES)
def test_drawn_density_integrates_to_one(name: str) -> None:
    side = torch.linspace(-60, 60, 2001)
    first, second = torch.meshgrid(side, side / 2, indexing="xy")
    height = log_density(name, first, second).exp()
    total = torch.trapezoid(torch.trapezoid(height, side, dim=1), side / 2, dim=0)
    assert abs(total - 1) < 0.05


def test_spline_guide_is_a_bijection() -> None:
    transform = spline(8, 3)
    x = torch.randn(5, 3)
    with torch.no_grad():
        y = transform(x)
        torch.testing.assert_close(transform._inverse(y), x, atol=1e-3, rtol=0)
    jacobian = torch.stack([torch.autograd.functional.jacobian(transform._call, row) for row in x])
    torch.testing.assert_close(
        transform.log_abs_det_jacobian(x, y), torch.linalg.slogdet(jacobian)[1], atol=1e-4, rtol=0
    )
    assert len(list(transform.parameters())) > 0


def test_flows_are_brought_near_the_same_number_of_parameters() -> None:
    problem = PROBLEMS["banana"]
    for name in ("AutoIAFNormal", "AutoResidualFlow"):
        width = fitting_width(GUIDES[name], problem, 1200)
        assert 0.8 < size(initialized_guide(GUIDES[name], problem, width)) / 1200 < 1.25


def test_training_stops_when_the_budget_is_spent() -> None:
    problem = PROBLEMS["banana"]
    guide = initialized_guide(GUIDES["AutoNormal"], problem, 4)
    training = fit(guide, problem, budget=Budget(30), particles=2, learning_rate=1e-2)
    assert training.learning_rate == 1e-2
    assert training.steps == 30
    assert training.seconds > 0


def test_few_steps_print_the_table_and_write_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matplotlib.use("agg")
    main(
        problems=("banana",),
        guides=("AutoNormal", "AutoResidualFlow"),
        steps=3,
        particles=8,
        learning_rates=(1e-2,),
        parameters=200,
        draws=1000,
        folder=tmp_path / "new",
    )
    printed = capsys.readouterr().out
    assert "| banana | AutoNormal |" in printed
    assert "| banana | AutoResidualFlow |" in printed
    assert (tmp_path / "new" / "guides.png").stat().st_size > 1000
    assert (tmp_path / "new" / "table.md").read_text().count("banana") == 2
