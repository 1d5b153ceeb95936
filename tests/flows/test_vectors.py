"""Flows of vectors: structure, initial conditional flows, bad arguments."""

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch

from pyro_resflow import conditional_residual_flow, residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import ELU, check_contraction
from pyro_resflow.transforms import (
    ActNorm,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalInverse,
    ConditionalResidual,
)


def test_conditional_flow_has_a_block_an_affine_map_and_a_norm_each_time() -> None:
    flow = conditional_residual_flow(2, 3, 2)
    assert isinstance(flow, ConditionalCompose)
    kinds = [ConditionalResidual, ConditionalAffine, ActNorm]
    assert [type(part) for part in flow.parts] == 2 * kinds
    fitting = conditional_residual_flow(2, 3, 2, fast="density")
    assert isinstance(fitting, ConditionalInverse)
    assert [type(part) for part in fitting.inv.parts] == [ActNorm, *2 * kinds]


def test_conditional_flow_passes_its_options_on() -> None:
    flow = conditional_residual_flow(
        2, 3, 1, [16, 8], context_hidden_dims=[5, 4], activation=ELU, logdet=Exact()
    )
    block, affine, _ = flow.parts
    for net in (block.net.shifts, affine.net):
        assert [m.in_features for m in net if isinstance(m, torch.nn.Linear)] == [3, 5, 4]
    assert block.net.shift_sizes == [16, 8, 2]
    assert any(isinstance(m, ELU) for m in block.net.modules())
    assert isinstance(block.logdet, Exact)


def test_conditional_flow_starts_from_noise_without_a_batch() -> None:
    conditioned = conditional_residual_flow(2, 3).condition(torch.randn(3))
    assert conditioned(torch.randn(2)).shape == (2,)


def test_conditional_flow_sets_its_norms_by_the_first_batch_scored() -> None:
    flow = conditional_residual_flow(2, 3, 2, fast="density")
    context, x = torch.randn(50, 3), 3 + 2 * torch.randn(50, 2)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with torch.no_grad():
        dist.TransformedDistribution(base, [flow.condition(context)]).log_prob(x)
        z = flow.condition(context).inv(x)
    assert z.mean(0).abs().max() < 1e-5
    assert (z.std(0) - 1).abs().max() < 1e-4


def test_conditional_flow_stays_a_contraction_and_invertible_at_far_contexts() -> None:
    flow = conditional_residual_flow(2, 3, 2, fast="density").double()
    conditioned = flow.condition(100 * torch.randn(50, 3).double())
    with torch.no_grad():
        x = torch.randn(50, 2).double()
        z = conditioned.inv(x)
        check_contraction(flow)
        # an error of z comes back stretched by no more than the scales of the flow
        assert (conditioned._call(z) - x).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: residual_flow(2, 0), "blocks: expected at least one"),
        (lambda: conditional_residual_flow(2, 3, 0), "blocks: expected at least one"),
        (lambda: conditional_residual_flow(2, 3, fast="both"), "fast: expected"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
