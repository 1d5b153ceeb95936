"""Probe vectors: second moments, freezing, reproducibility."""

import pytest
import torch

from pyro_resflow.logdet import Frozen, Gaussian, Geometric, Krylov, Probe, Rademacher
from tests.networks import NETWORKS


@pytest.mark.parametrize("probe", [Rademacher(), Gaussian()])
def test_second_moment_is_the_identity(probe: Probe) -> None:
    draws = probe.draw(torch.zeros(1, 3, dtype=torch.float64), 20_000)[:, 0]
    products = torch.einsum("ni,nj->nij", draws, draws)
    error = products.std(0) / len(draws) ** 0.5
    z = (products.mean(0) - torch.eye(3)) / error.clamp_min(1e-12)
    assert z.abs().max() < 4


def test_rademacher_entries_are_signs() -> None:
    assert set(Rademacher().draw(torch.zeros(5, 7), 2).unique().tolist()) == {-1.0, 1.0}


def test_frozen_probes_do_not_depend_on_the_batch_or_the_global_seed() -> None:
    frozen = Frozen(seed=5)
    first = frozen.draw(torch.zeros(3, 4), 2)
    torch.manual_seed(99)
    second = frozen.draw(torch.zeros(7, 4), 2)
    assert torch.equal(first[:, 0], second[:, 6])


def test_frozen_estimator_is_a_deterministic_function_that_leaves_the_global_seed_alone() -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    x = torch.randn(4, *event_shape)
    estimator = Krylov(probe=Frozen(), tail=Geometric(0.9))
    state = torch.random.get_rng_state()
    first = estimator(net, x)[1]
    assert torch.equal(first, estimator(net, x)[1])
    assert torch.equal(state, torch.random.get_rng_state())
    assert estimator.is_deterministic
    assert not Krylov().is_deterministic


def test_estimator_reproduces_from_the_seed_of_torch() -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    x = torch.randn(4, *event_shape)
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(Krylov()(net, x)[1])
    assert torch.equal(found[0], found[1])
