import copy
import math

import pytest
import torch
from pyro.distributions.transforms import ComposeTransformModule
from torch import Tensor, nn
from torch.distributions import transforms

from pyro_resflow import conditional_residual_flow, residual_flow
from pyro_resflow.transforms import ActNorm, Compose


@pytest.mark.parametrize("conditional", [False, True])
def test_saving_measures_norms_as_a_call_does(conditional: bool) -> None:
    """To the last bit: or a run that was saved would go on a little differently."""
    x, context = torch.randn(32, 4), torch.randn(32, 2)

    def call(flow: nn.Module) -> Tensor:
        transform = flow.condition(context) if conditional else flow
        return transform(x)

    if conditional:
        flow: nn.Module = conditional_residual_flow(4, 2, 4, [16, 16])
    else:
        flow = residual_flow(4, 4, [16, 16])
    call(flow)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    saved = copy.deepcopy(flow)
    saved.state_dict()
    call(flow)
    pairs = zip(saved.named_buffers(), flow.buffers(), strict=True)
    assert [name for (name, a), b in pairs if not torch.equal(a, b)] == []


def test_a_part_that_has_been_replaced_is_evaluated() -> None:
    flow = Compose([ActNorm(2, initialized=True), ActNorm(2, initialized=True)])
    x = torch.randn(5, 2)
    assert torch.equal(flow(x), x)
    flow.parts[1] = transforms.AffineTransform(1.0, 2.0)
    y, ladj = flow.call_and_ladj(x)
    torch.testing.assert_close(y, 1 + 2 * x)
    torch.testing.assert_close(ladj, torch.full((5,), 2 * math.log(2.0)))
    del flow.parts[1]
    assert torch.equal(flow.call_and_ladj(x)[0], x)


def test_a_foreign_composition_that_has_grown_is_evaluated() -> None:
    inner = ComposeTransformModule([ActNorm(2, initialized=True)])
    flow = Compose([inner])
    x = torch.randn(5, 2)
    assert torch.equal(flow.call_and_ladj(x)[0], x)
    inner.parts.append(transforms.AffineTransform(1.0, 2.0))
    torch.testing.assert_close(flow.call_and_ladj(x)[0], 1 + 2 * x)
