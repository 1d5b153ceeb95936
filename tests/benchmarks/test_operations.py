"""A training step of a small flow dispatches no more operations than it does."""

import pytest
import torch

from benchmarks.operations import SIZES, flow_step, operations_of, plain_step

MOST = {  # times the operations of the plain network: lower them with the counts
    SIZES[0]: 3.8,
    SIZES[1]: 5.3,
    SIZES[2]: 6.1,
    SIZES[3]: 4.8,
}
"""Where the log-determinant is stochastic, they leave room for its random number of products."""

STEPS = 5


@pytest.mark.parametrize("size", SIZES)
def test_a_step_dispatches_no_more_operations_than_before(size):
    step = flow_step(size)
    torch.manual_seed(1)
    plain = operations_of(plain_step(size), 1).total()
    assert plain < operations_of(step, STEPS).total() / STEPS <= MOST[size] * plain


def test_the_counter_counts_each_operation_once():
    x = torch.ones(3)
    counts = operations_of(lambda: torch.add(x, x).mul_(2), steps=4)
    assert counts == {"aten.add.Tensor": 4, "aten.mul_.Tensor": 4}


def test_a_plain_step_is_that_of_its_layers():
    counts = operations_of(plain_step(SIZES[2]), steps=1)
    assert counts["aten.addmm.default"] == 5 * 2
    assert counts["aten.silu.default"] == 5
