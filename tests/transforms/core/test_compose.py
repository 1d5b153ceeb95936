import copy

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow import conditional_residual_flow, residual_flow


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
