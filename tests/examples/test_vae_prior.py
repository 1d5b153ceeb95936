from __future__ import annotations

from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("torchvision")

import matplotlib

from examples.training import Budget
from examples.vae_prior import VAE, Architecture, Prior, best, fit, main


def small(blocks: int, code_dim: int = 2, seed: int = 0, posterior_blocks: int = 0) -> VAE:
    return Architecture(9, 5, code_dim, 16, blocks, posterior_blocks).build(seed)


def patterns(n: int) -> Tensor:
    """Images of nine pixels, one column of which is bright: three clusters."""
    column = torch.randint(3, (n,))
    bright = torch.nn.functional.one_hot(column, 3).repeat(1, 3)
    return dist.Binomial(4, 0.1 + 0.8 * bright).sample()


def test_priors_share_the_first_weights_and_nothing_else() -> None:
    normal, flow = small(0), small(2)
    other = small(0, seed=1)
    for part in ("posterior", "decoder"):
        for a, b, c in zip(
            getattr(normal, part).parameters(),
            getattr(flow, part).parameters(),
            getattr(other, part).parameters(),
            strict=True,
        ):
            assert torch.equal(a, b)
            assert not torch.equal(a, c)
    assert not list(normal.prior.parameters())
    assert list(flow.prior.parameters())


def test_prior_without_transforms_is_standard_normal() -> None:
    code = torch.randn(7, 3)
    expected = dist.Normal(torch.zeros(3), 1.0).to_event(1).log_prob(code)
    torch.testing.assert_close(Prior(3)().log_prob(code), expected)


@pytest.mark.parametrize(("blocks", "posterior_blocks"), [(0, 0), (2, 0), (2, 2)])
def test_bound_lies_below_the_evidence_by_the_posteriors_divergence(
    blocks: int, posterior_blocks: int
) -> None:
    vae, images = small(blocks, code_dim=1, posterior_blocks=posterior_blocks), patterns(5)
    with torch.no_grad():
        vae.prior().log_prob(torch.randn(50, 1))  # the first batch sets the scales
        # of a code of one entry, the integral over it; the estimate is exact in one dimension
        code = torch.linspace(-8, 8, 4001)[:, None]
        width = 16 / 4000
        joint = vae.prior().log_prob(code)[:, None] + vae.likelihood(code[:, None]).log_prob(
            images
        )
        evidence = joint.logsumexp(0) + torch.tensor(width).log()
        q = vae.posterior(images / 4).log_prob(code[:, None].expand(-1, 5, 1))
        divergence = (q.exp() * (q - joint + evidence)).sum(0) * width
    draws = torch.stack([vae.elbo(images, 1) for _ in range(100)])
    score = (draws.mean(0) - (evidence - divergence)) / (draws.std(0) / 100**0.5)
    assert divergence.min() > 0.01
    assert score.abs().max() < 4


def test_flow_raises_the_bound_of_clustered_images() -> None:
    training, test = patterns(500), patterns(300)
    bounds = []
    for blocks in (0, 2):
        vae = small(blocks)
        budget = Budget(100)
        fit(vae, training, budget=budget, batch_size=100, learning_rate=1e-2, seed=0)
        bounds.append(vae.elbo(test, 5))
    gain = bounds[1] - bounds[0]
    assert gain.mean() > 2 * gain.std() / len(gain) ** 0.5


def test_held_out_images_choose_the_learning_rate() -> None:
    images = patterns(100)
    vae, training = best(
        Architecture(9, 5, 2, 16),
        images,
        budget=Budget(100),
        batch_size=50,
        learning_rates=(1e-7, 1e-2),
        draws=5,
        seed=0,
    )
    assert (training.learning_rate, training.steps) == (1e-2, 100)
    untrained = small(0)
    assert vae.elbo(images[:10], 5).mean() > untrained.elbo(images[:10], 5).mean() + 1


def test_few_steps_write_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("agg")
    main(
        seeds=(0, 1),
        steps=2,
        code_dim=2,
        hidden=8,
        blocks=1,
        posterior_blocks=1,
        batch_size=16,
        draws=1,
        folder=tmp_path / "new",
    )
    printed = capsys.readouterr().out
    assert "seed 0" in printed
    assert "seed 1" in printed
    assert "gain over seeds" in printed
    assert "flow: 2 steps in" in printed
    assert (tmp_path / "new" / "vae_prior.png").stat().st_size > 1000


def test_a_rate_at_which_the_vae_diverges_is_not_chosen() -> None:
    options = {"budget": Budget(3), "batch_size": 50, "draws": 2, "seed": 0}
    sizes = Architecture(9, 5, 2, 16)
    _, training = best(sizes, patterns(100), learning_rates=(1e30, 1e-2), **options)
    assert training.learning_rate == 1e-2
    with pytest.raises(RuntimeError, match=r"the VAE diverged at each; try smaller ones"):
        best(sizes, patterns(100), learning_rates=(1e30, 1e29), **options)
