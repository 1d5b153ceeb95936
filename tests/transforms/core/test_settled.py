"""Networks that change with each batch or call raise an error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.logdet import Exact, Krylov
from pyro_resflow.nn import Chain, LipschitzLinear
from pyro_resflow.transforms import Monotone, Residual, is_deterministic


class Recurrent(nn.GRU):
    """Two layers, with dropout between them."""

    def __init__(self) -> None:
        super().__init__(4, 4, 2, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return 0.3 * super().forward(x[None])[0][0]


UNSETTLED = {
    "Recurrent": Recurrent,
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "Dropout": lambda: nn.Dropout(0.5),
    "RReLU": nn.RReLU,
}


def network(layer: nn.Module) -> nn.Sequential:
    """A contraction of slope at most 0.9 while the layer's own is at most 1."""
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.mul_(0.3)
    return nn.Sequential(linear, layer, nn.Tanh())


@pytest.mark.parametrize("name", sorted(UNSETTLED))
@pytest.mark.parametrize("kind", [Residual, Monotone])
@pytest.mark.parametrize("logdet", [Exact(), Krylov()], ids=["exact", "krylov"])
def test_refused_in_training_mode_and_right_in_evaluation(
    name: str, kind: type, logdet: object
) -> None:
    block = kind(network(UNSETTLED[name]()), logdet=logdet)
    x = torch.randn(5, 4)
    message = rf"net: .* a {name} in training mode.*call eval\(\)"
    for call in (block, block.call_and_ladj, block.inv, block.inverse_and_ladj):
        with pytest.raises(ValueError, match=message), torch.no_grad():
            call(x)
    assert not is_deterministic(block)
    block.eval()
    y, _ = block.call_and_ladj(x)
    torch.testing.assert_close(block.inv(y.clone()), x, rtol=1e-4, atol=1e-5)


def test_exact_log_det_in_evaluation_is_that_of_each_sample() -> None:
    block = Residual(network(nn.BatchNorm1d(4)), logdet=Exact()).eval()
    x = torch.randn(3, 4)
    _, ladj = block.call_and_ladj(x)
    for point, found in zip(x, ladj, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: block(z[None])[0], point)
        torch.testing.assert_close(found, torch.linalg.slogdet(jacobian)[1])


def test_batch_norm_without_averages_is_refused_in_evaluation_too() -> None:
    block = Residual(network(nn.BatchNorm1d(4, track_running_stats=False))).eval()
    with pytest.raises(ValueError, match="BatchNorm1d in evaluation mode"):
        block(torch.randn(5, 4))


def test_dropout_of_nothing_and_layer_norms_are_functions() -> None:
    block = Residual(network(nn.Sequential(nn.Dropout(0.0), nn.LayerNorm(4))))
    with torch.no_grad():
        block.net[1][1].weight.fill_(0.05)
    assert block.call_and_ladj(torch.randn(5, 4))[1].shape == (5,)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Dropout(), nn.Tanh()])
def test_chain_says_which_layer_is_none(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"layers: .*got a {type(layer).__name__}\. Use Lip"):
        Chain([LipschitzLinear(4, 4), layer])
