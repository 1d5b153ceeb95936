"""torch.compile of a flow of contractions raises an error of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_resflow import residual_flow
from pyro_resflow.compilation import CompilationError
from pyro_resflow.logdet import Exact
from tests.versions import torch_is

pytestmark = pytest.mark.skipif(not torch_is("2.7"), reason="torch.compile needs torch 2.7 here")

BACKEND = "eager"  # traces as for a device, and runs without a compiler


def density(fast: Any) -> dist.TransformedDistribution:
    flow = residual_flow(3, 2, [8], fast=fast, logdet=Exact())
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    d = dist.TransformedDistribution(base, [flow])
    d.log_prob(torch.randn(20, 3))  # initialises its normalizations
    return d


Function = Callable[[dist.TransformedDistribution, Tensor], Tensor]

FUNCTIONS: dict[str, Function] = {
    "log_prob": lambda d, x: d.log_prob(x),
    "call": lambda d, x: d.transforms[0](x),
    "inverse": lambda d, x: d.transforms[0].inv(x),
    "rsample": lambda d, x: d.rsample((4,)),
}


def check_refused(fast: str, function: Function) -> None:
    torch.compiler.reset()
    d, x = density(fast), torch.randn(5, 3)
    compiled = torch.compile(lambda x: function(d, x), backend=BACKEND)
    with pytest.raises(CompilationError, match=r"^Compose: expected a call outside"):
        compiled(x)


def test_a_compiled_log_prob_is_refused() -> None:
    check_refused("density", FUNCTIONS["log_prob"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("fast", ["sampling", "density"])
def test_every_use_of_a_compiled_flow_is_refused(fast: str, name: str) -> None:
    check_refused(fast, FUNCTIONS[name])


@pytest.mark.slow
def test_eager_code_inside_a_compiled_function_is_not() -> None:
    torch.compiler.reset()
    d, x = density("density"), torch.randn(5, 3)
    log_prob = torch.compiler.disable(d.log_prob)
    compiled = torch.compile(lambda x: 2 * log_prob(x + 1), backend=BACKEND)
    torch.testing.assert_close(compiled(x), 2 * d.log_prob(x + 1))
    torch.testing.assert_close(d.log_prob(x), d.log_prob(x.clone()))
