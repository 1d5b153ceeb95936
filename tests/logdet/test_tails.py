"""Roulette distributions: draws follow the survival function that terms are divided by."""

import pytest
import torch

from pyro_resflow.logdet import Geometric, NoTail, Poisson, Tail


@pytest.mark.parametrize("tail", [Geometric(0.5), Geometric(0.1), Geometric(0.0), Poisson(2.0)])
def test_draws_follow_the_survival_function(tail: Tail) -> None:
    number = 20_000
    draws = torch.tensor([tail.draw(None) for _ in range(number)])
    for j in range(6):
        p = tail.survival(j)
        found = (draws >= j).double().mean().item()
        error = (p * (1 - p) / number) ** 0.5
        assert abs(found - p) <= 4 * error


def test_no_tail_never_draws() -> None:
    assert NoTail().draw(None) == 0
    assert NoTail().survival(0) == 1
    assert NoTail().survival(1) == 0


@pytest.mark.parametrize("tail", [Geometric(0.7), Poisson(2.0)])
def test_a_generator_makes_draws_repeatable(tail: Tail) -> None:
    draws = [[tail.draw(g) for _ in range(9)] for g in map(torch.Generator().manual_seed, (1, 1))]
    assert draws[0] == draws[1]
