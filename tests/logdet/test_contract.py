"""An estimator of the user's own works wherever the package's estimators do."""

import inspect

import pytest
import torch
from torch import Tensor

from pyro_resflow import conditional_residual, logdet, residual
from pyro_resflow.logdet import Exact, LogDetEstimator
from pyro_resflow.transforms import (
    is_deterministic,
    monotone,
    set_logdet,
    temporary_logdet,
)
from tests.logdet.registry import CASES, estimator
from tests.transforms.contractions import BLOCKS


class Own(LogDetEstimator):
    """The trace of f(J), each logarithm by the determinant of a Jacobian made of tangents."""

    is_deterministic = True

    def value_and_trace(self, net, x, function):
        self.seen = x.shape
        at_x = net.linearize(x)
        units = torch.eye(x.shape[1], dtype=x.dtype)
        jacobian = at_x.jvp(units[:, None].expand(-1, *x.shape)).permute(1, 2, 0)
        logdets = [s * torch.linalg.slogdet(units + t * jacobian)[1] for s, t in function.terms]
        return at_x.value, sum(logdets)


@pytest.mark.parametrize("name", BLOCKS)
def test_an_estimator_of_ones_own_serves_every_block(name: str) -> None:
    own = Own()
    block, x = BLOCKS[name](logdet=own).double(), torch.randn(2, 5, 3, dtype=torch.float64)

    def found() -> tuple[Tensor, ...]:
        y, ladj = block.call_and_ladj(x)
        gradients = torch.autograd.grad(ladj.sum() + y.square().sum(), block.parameters())
        return y, ladj, *gradients

    values = found()
    assert own.seen == (10, 3)  # one flat batch, whatever the block was given
    holder = getattr(block, "conditional", block)
    holder.logdet = Exact()
    torch.testing.assert_close(values, found())
    assert is_deterministic(block)


def function(net, x, event_dim=None):
    return net(x), x.sum(-1)


@pytest.mark.parametrize(
    "use",
    [
        lambda: residual(2, logdet=function),
        lambda: monotone(2, logdet=Exact),
        lambda: conditional_residual(2, 1, logdet=0),
        lambda: set_logdet(residual(2), function),
        lambda: temporary_logdet(residual(2), function).__enter__(),
    ],
)
def test_what_is_no_estimator_is_refused_by_name(use) -> None:
    with pytest.raises(TypeError, match="logdet: expected a LogDetEstimator, got "):
        use()


def test_an_estimator_without_its_method_cannot_be_made() -> None:
    class Empty(LogDetEstimator):
        pass

    with pytest.raises(TypeError, match="value_and_trace"):
        Empty()


def test_the_registry_has_every_public_estimator() -> None:
    public = [getattr(logdet, name) for name in logdet.__all__]
    classes = {each for each in public if isinstance(each, type)}
    expected = {
        each
        for each in classes
        if issubclass(each, LogDetEstimator) and not inspect.isabstract(each)
    }
    assert {type(estimator(name)) for name in CASES} == expected


@pytest.mark.parametrize("name", CASES)
def test_every_estimator_says_whether_it_is_noisy(name: str) -> None:
    torch.manual_seed(0)
    net, x = residual(3, [8]).net, torch.randn(4, 3)
    first, second = (estimator(name)(net, x)[1] for _ in range(2))
    assert torch.equal(first, second) == estimator(name).is_deterministic
    assert estimator(name).is_deterministic == (not CASES[name].is_noisy)
