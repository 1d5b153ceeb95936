"""A solver of the user's own works wherever the package's solvers do."""

import pytest
import torch

from pyro_resflow import residual
from pyro_resflow.solvers import Anderson, FixedPointSolver, Solver
from tests.transforms.contractions import BLOCKS


class Damped(FixedPointSolver):
    """Banach's iteration by shorter steps."""

    def solve(self, iteration):
        self.seen = tuple(iteration.x.shape)
        while not iteration.done:
            if iteration.exhausted:
                raise iteration.failure()
            iteration.move(iteration.x + 0.9 * iteration.residual)
        return iteration.x


@pytest.mark.parametrize("name", BLOCKS)
def test_a_solver_of_ones_own_serves_every_block_with_its_gradients(name: str) -> None:
    own = Damped()
    block, y = BLOCKS[name](solver=own).double(), torch.randn(2, 5, 3, dtype=torch.float64)

    def found():
        x = block.inv(y)
        return x, *torch.autograd.grad(x.square().sum(), block.parameters())

    values = found()
    assert own.seen == (10, 3)
    getattr(block, "conditional", block).solver = Anderson()
    block.clear_cache()
    torch.testing.assert_close(values, found())


@pytest.mark.parametrize("solver", [Anderson, lambda net, y, event_dim: y])
def test_what_is_no_solver_is_refused_by_name(solver) -> None:
    with pytest.raises(TypeError, match="solver: expected a FixedPointSolver, got "):
        residual(2, solver=solver)


def test_the_base_has_two_names_and_is_abstract() -> None:
    assert Solver is FixedPointSolver
    with pytest.raises(TypeError, match="solve"):
        FixedPointSolver()
