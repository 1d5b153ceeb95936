"""A block of a plain network computes the same in every mode of torch as in the general way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from pyro_resflow.linearization import AutogradNetwork
from pyro_resflow.logdet import Exact, Krylov, LogDetEstimator, RussianRoulette
from pyro_resflow.nn import why_autograd
from pyro_resflow.transforms import Monotone, Residual

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def perceptron() -> tuple[nn.Sequential, int]:
    first, second, third = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 3)
    return nn.Sequential(first, nn.SiLU(), second, nn.GELU(), third), 1


def images() -> tuple[nn.Sequential, int]:
    net = nn.Sequential(
        nn.SiLU(),
        parametrizations.weight_norm(nn.Conv2d(2, 18, 3, padding=1)),
        nn.SiLU(),
        nn.Conv2d(18, 2, 3, padding=1, padding_mode="circular"),
    )
    return net, 3


NETWORKS = {"vectors": perceptron, "images": images}
ESTIMATORS = {
    "Exact": Exact(),
    "Exact in chunks": Exact(chunk_size=2),
    "Krylov": Krylov(),
    "Krylov, keep": Krylov(memory="keep"),
    "roulette": RussianRoulette(),
}


class Pair:
    """A network, the same one in the general way, and a batch.

    Args:
        name: of the network.
        dtype: of all tensors.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.net, self.event_dim = NETWORKS[name]()
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.mul_(0.7)
        self.net.to(dtype)
        assert why_autograd(self.net) == ""
        self.x = torch.randn(3, *(3,) if self.event_dim == 1 else (2, 3, 3), dtype=dtype)

    def compare(
        self,
        function: Callable[[Residual], Sequence[Tensor]],
        logdet: LogDetEstimator | None = None,
        kind: type = Residual,
        **close: float,
    ) -> None:
        """Raise unless a function of the block, with the same noise, gives the same."""
        results = []
        for net in (self.net, AutogradNetwork(self.net)):
            block = kind(net, event_dim=self.event_dim, logdet=logdet or Exact())
            torch.manual_seed(1)
            results.append(list(function(block)))
        torch.testing.assert_close(*results, **(close or CLOSE))

    def gradients(self, outputs: Sequence[Tensor], x: Tensor, order: int = 1) -> list[Tensor]:
        """Gradients of a nonlinear function of the outputs, by x and all parameters."""
        inputs = [x, *self.net.parameters()]
        for each in range(order):
            total = sum(output.float().sin().sum() for output in outputs)
            options = {"create_graph": each + 1 < order, "materialize_grads": True}
            outputs = torch.autograd.grad(total, inputs, allow_unused=True, **options)
        return list(outputs)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients(name: str, estimator: str) -> None:
    pair = Pair(name)

    def function(block: Residual) -> list[Tensor]:
        x = pair.x.clone().requires_grad_()
        outputs = block.call_and_ladj(x)
        return [*outputs, *pair.gradients(outputs, x)]

    pair.compare(function, ESTIMATORS[estimator])


@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives(name: str) -> None:
    pair = Pair(name)

    def function(block: Residual) -> list[Tensor]:
        x = pair.x.clone().requires_grad_()
        return pair.gradients(block.call_and_ladj(x), x, order=2)

    pair.compare(function)


@pytest.mark.parametrize("kind", [Residual, Monotone])
@pytest.mark.parametrize("name", NETWORKS)
def test_inverse_and_its_gradients(name: str, kind: type) -> None:
    pair = Pair(name)

    def function(block: Residual) -> list[Tensor]:
        y = pair.x.clone().requires_grad_()
        outputs = block.inverse_and_ladj(y)
        return [*outputs, *pair.gradients(outputs, y)]

    pair.compare(function, kind=kind, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", NETWORKS)
def test_without_gradients(name: str, context: Callable[[], torch.no_grad]) -> None:
    pair = Pair(name)
    with context():
        pair.compare(lambda block: [*block.call_and_ladj(pair.x), block._call(pair.x)])


@pytest.mark.parametrize("estimator", ["Exact", "Krylov", "Krylov, keep"])
@pytest.mark.parametrize("name", NETWORKS)
def test_checkpoint(name: str, estimator: str) -> None:
    pair = Pair(name)

    def function(block: Residual) -> list[Tensor]:
        x = pair.x.clone().requires_grad_()
        return pair.gradients(checkpoint(block.call_and_ladj, x, use_reentrant=False), x)

    pair.compare(function, ESTIMATORS[estimator])


@pytest.mark.parametrize(
    ("dtype", "is_autocast", "tolerance"),
    [(torch.float32, False, 1e-5), (torch.float32, True, 0.05)],
    ids=["float32", "autocast"],
)
@pytest.mark.parametrize("estimator", ["Exact", "Krylov"])
@pytest.mark.parametrize("name", NETWORKS)
def test_precision(
    name: str, estimator: str, dtype: torch.dtype, is_autocast: bool, tolerance: float
) -> None:
    pair = Pair(name, dtype)

    def function(block: Residual) -> list[Tensor]:
        x = pair.x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            outputs = block.call_and_ladj(x)
        return [*outputs, *pair.gradients(outputs, x)]

    pair.compare(function, ESTIMATORS[estimator], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_func(name: str) -> None:
    pair, x = Pair(name), torch.func

    def function(block: Residual) -> list[Tensor]:
        def ladj(point: Tensor) -> Tensor:
            return block.call_and_ladj(point[None])[1][0]

        found = [x.vmap(x.grad(ladj))(pair.x), x.hessian(ladj)(pair.x[0])]
        return [*found, *x.jvp(ladj, (pair.x[0],), (pair.x[1],))]

    pair.compare(function)


@pytest.mark.parametrize("estimator", ["Exact", "Krylov"])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_ensemble_of_parameters_under_vmap(name: str, estimator: str) -> None:
    pair = Pair(name)
    parameters = {key: p.detach() for key, p in pair.net.named_parameters()}
    both = {key: torch.stack([p, 0.9 * p]) for key, p in parameters.items()}

    def function(block: Residual) -> list[Tensor]:
        def ladj(given: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(holder, given, (pair.x,))

        holder = Holder(pair.net, block)
        gradients = torch.func.vmap(torch.func.grad(ladj), randomness="different")
        return list(gradients({f"net.{key}": p for key, p in both.items()}).values())

    pair.compare(function, ESTIMATORS[estimator])


class Holder(nn.Module):
    """The sum of a block's log-determinants, as a function of its network's parameters."""

    def __init__(self, net: nn.Module, block: Residual) -> None:
        super().__init__()
        self.net = net
        self.block = [block]

    def forward(self, x: Tensor) -> Tensor:
        return self.block[0].call_and_ladj(x)[1].sum()


@pytest.mark.slow  # most of it is the compiler's own time
@pytest.mark.filterwarnings("ignore:Dynamo")
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled(name: str) -> None:
    torch.compiler.reset()
    pair = Pair(name)
    block = Residual(pair.net, event_dim=pair.event_dim, logdet=Exact())
    compiled = torch.compile(block.call_and_ladj, backend="aot_eager")
    results = []
    for function in (compiled, block.call_and_ladj):
        x = pair.x.clone().requires_grad_()
        outputs = function(x)
        results.append([*outputs, *pair.gradients(outputs, x)])
    torch.testing.assert_close(*results, **CLOSE)
