"""Log-determinants of several blocks, computed together, are those of each block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_resflow import conditional_residual_flow, residual_flow
from pyro_resflow.logdet import (
    Exact,
    Frozen,
    Geometric,
    Krylov,
    LogDetEstimator,
    PowerSeries,
    Rademacher,
)
from pyro_resflow.nn import (
    Chain,
    ConditionalGatedLipschitzMLP,
    GatedLipschitzMLP,
    LipschitzMLP,
)
from pyro_resflow.transforms import ActNorm, Compose, Residual, image_features
from pyro_resflow.transforms.core import evaluation
from pyro_resflow.transforms.core.stacks import KEPT_FEATURES, STACKED_FEATURES, stacks_of

D = 5

ESTIMATORS: dict[str, Callable[[], LogDetEstimator]] = {
    "exact": Exact,
    "exact in chunks": lambda: Exact(chunk_size=2),
    "krylov": lambda: Krylov(probe=Frozen()),
    "two probes": lambda: Krylov(probe=Frozen(), num_probes=2, memory="keep"),
    "series": lambda: PowerSeries(4, probe=Frozen()),
}


def randomized(flow: Any) -> Any:
    """A flow in double precision with random parameters."""
    flow.double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return flow


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each block compute its log-determinant."""
    monkeypatch.setattr(evaluation, "stacks_of", lambda passes, *_: [None] * len(passes))


def stacks(flow: Compose, *batch: int) -> list[int | None]:
    steps = flow._steps()
    return stacks_of(steps.passes, torch.zeros(*batch, D, dtype=torch.float64), 1)


def both_ways(
    monkeypatch: pytest.MonkeyPatch,
    transform: Callable[[], Transform],
    x: Tensor,
    inputs: list[Tensor],
) -> list[list[Tensor]]:
    """Values, log-determinants and gradients of both directions, together and alone."""
    found = []
    for is_alone in (False, True):
        with monkeypatch.context() as patch:
            if is_alone:
                alone(patch)
            results: list[Tensor] = []
            for direction in ("call_and_ladj", "inverse_and_ladj"):
                value, ladj = getattr(transform(), direction)(x)
                loss = value.sin().sum() + ladj.sin().sum()
                results += [value, ladj, *torch.autograd.grad(loss, inputs)]
                with torch.no_grad():
                    results += getattr(transform(), direction)(x)
        found.append(results)
    return found


@pytest.mark.parametrize("network", [LipschitzMLP, GatedLipschitzMLP])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_values_and_gradients_are_those_of_each_block(
    monkeypatch: pytest.MonkeyPatch, name: str, network: type
) -> None:
    flow = randomized(residual_flow(D, 3, [7], logdet=ESTIMATORS[name](), network=network))
    x = torch.randn(2, 4, D, dtype=torch.float64, requires_grad=True)
    together, separate = both_ways(monkeypatch, lambda: flow, x, [x, *flow.parameters()])
    torch.testing.assert_close(together, separate, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", [None, ConditionalGatedLipschitzMLP])
@pytest.mark.parametrize("contexts", [(4, 3), (1, 3), (2, 1, 3), (3, 1, 1, 3)])
def test_contexts_broadcast(
    monkeypatch: pytest.MonkeyPatch, contexts: tuple[int, ...], network: type | None
) -> None:
    options = {} if network is None else {"network": network}
    flow = randomized(conditional_residual_flow(D, 3, 3, [7], **options))
    x = torch.randn(2, 4, D, dtype=torch.float64, requires_grad=True)
    context = torch.randn(contexts, dtype=torch.float64, requires_grad=True)
    inputs = [x, context, *flow.parameters()]
    together, separate = both_ways(monkeypatch, lambda: flow.condition(context), x, inputs)
    torch.testing.assert_close(together, separate, rtol=1e-9, atol=1e-9)


def test_second_derivatives_are_those_of_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = randomized(residual_flow(D, 3, [7], logdet=Exact()))
    x = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    found = []
    for is_alone in (False, True):
        with monkeypatch.context() as patch:
            if is_alone:
                alone(patch)
            (gradient,) = torch.autograd.grad(flow.call_and_ladj(x)[1].sum(), x, create_graph=True)
            found.append(torch.autograd.grad(gradient.sin().sum(), x)[0])
    torch.testing.assert_close(*found)


def test_a_second_derivative_of_an_estimate_is_refused() -> None:
    flow = randomized(residual_flow(D, 3, [7], logdet=Krylov()))
    x = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(flow.call_and_ladj(x)[1].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="logdet=Exact"):
        gradient.sum().backward()


def test_a_second_backward_pass_repeats_the_first() -> None:
    flow = randomized(residual_flow(D, 3, [7], logdet=Krylov()))
    y, ladj = flow.call_and_ladj(torch.randn(4, D, dtype=torch.float64))
    loss, parameters = y.sin().sum() + ladj.sum(), list(flow.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), first)


@pytest.mark.parametrize("memory", ["recompute", "keep"])
def test_estimates_and_their_gradients_are_unbiased(memory: Any) -> None:
    """All blocks of a stack draw the same number of terms."""
    torch.manual_seed(1)
    draws = 4000
    noisy = Krylov(1, tail=Geometric(0.5), memory=memory)
    flow = randomized(residual_flow(D, 3, [7], logdet=noisy))
    exact = Compose(
        [
            type(part)(part.net, logdet=Exact()) if isinstance(part, Residual) else part
            for part in flow.parts
        ]
    )
    x = torch.randn(1, D, dtype=torch.float64, requires_grad=True)
    expected = exact.call_and_ladj(x)[1]
    (of_x,) = torch.autograd.grad(expected.sum(), x)
    values, gradients = [], []
    for _ in range(40):  # each pass draws one number of terms for all of its samples
        many = x.detach().expand(draws // 40, D).clone().requires_grad_()
        ladj = flow.call_and_ladj(many)[1]
        (gradient,) = torch.autograd.grad(ladj.sum(), many)
        values.append(ladj.detach().mean())
        gradients.append(gradient.mean(0))
    for found, truth in ((torch.stack(values), expected), (torch.stack(gradients), of_x)):
        z = (found.mean(0) - truth.detach()) / (found.std(0) / len(found) ** 0.5)
        assert z.abs().max() < 4


def test_an_estimate_takes_as_many_products_for_all_blocks_as_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes: list[torch.Size] = []
    estimate = Krylov.estimate

    def counted(self: Krylov, vjp: Any, probes: Tensor, function: Any) -> Any:
        shapes.append(probes.shape)
        return estimate(self, vjp, probes, function)

    monkeypatch.setattr(Krylov, "estimate", counted)
    flow = randomized(residual_flow(D, 4, [7], logdet=Krylov()))
    flow.call_and_ladj(torch.randn(6, D, dtype=torch.float64))
    assert shapes == [(1, 24, D)]


def test_blocks_of_other_layouts_or_estimators_keep_to_themselves() -> None:
    class Own(Residual):
        """A subclass, which may compute something else."""

    flow = Compose(
        [
            Residual(LipschitzMLP(D, [7]), logdet=Krylov()),
            Residual(LipschitzMLP(D, [7]), logdet=Krylov()),
            ActNorm(D),
            Residual(LipschitzMLP(D, [7]), logdet=Krylov(3)),
            Residual(LipschitzMLP(D, [7]), logdet=Krylov(tail=Geometric(0.4))),
            Residual(LipschitzMLP(D, [8]), logdet=Krylov()),
            Residual(GatedLipschitzMLP(D, [7]), logdet=Krylov()),
            Residual(torch.nn.Linear(D, D), logdet=Krylov()),
            Own(LipschitzMLP(D, [7]), logdet=Krylov()),
            Residual(LipschitzMLP(D, [7]), logdet=Exact()),
            Residual(LipschitzMLP(D, [7]), logdet=Exact()),
        ]
    ).double()
    assert stacks(flow, 6) == [0, 0, *[None] * 7, 1, 1]


class Half(Exact):
    """An estimator that changes what every call returns."""

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        value, trace = super().__call__(*args, **kwargs)
        return value, trace / 2


class Signs(Rademacher):
    """Probes that depend on the point."""

    def draw(self, x: Tensor, num_probes: int) -> Tensor:
        return x.detach().sign().expand(num_probes, *x.shape)


class OwnChain(Chain):
    """A chain that evaluates itself."""

    def evaluate(self, x: Tensor, coefficients: Any) -> Tensor:
        return super().evaluate(x, coefficients)


def own_gate() -> GatedLipschitzMLP:
    net = GatedLipschitzMLP(D, [7])
    return net.with_branch(OwnChain(list(net.branch)))


@pytest.mark.parametrize(
    "block",
    [
        lambda: Residual(LipschitzMLP(D, [7]), logdet=Half()),
        lambda: Residual(LipschitzMLP(D, [7]), logdet=Krylov(20, probe=Signs())),
        lambda: Residual(own_gate(), logdet=Exact()),
    ],
    ids=["own call", "own probe", "own branch"],
)
def test_blocks_with_parts_of_another_package_keep_to_themselves(
    block: Callable[[], Residual],
) -> None:
    flow = randomized(Compose([block(), block()]))
    assert stacks(flow, 6) == [None, None]
    x = torch.randn(6, D, dtype=torch.float64)
    y, ladj = flow.parts[0].call_and_ladj(x)
    torch.testing.assert_close(flow.call_and_ladj(x)[1], ladj + flow.parts[1].call_and_ladj(y)[1])


def test_a_deep_flow_keeps_few_features() -> None:
    blocks = [Residual(LipschitzMLP(D, [2**7]), logdet=Krylov()) for _ in range(33)]
    samples = KEPT_FEATURES // 2**7 // 32
    assert None not in stacks(Compose(blocks[:32]).double(), samples)
    assert stacks(Compose(blocks).double(), samples) == [None] * 33


def test_settings_count_as_they_are_now() -> None:
    flow = residual_flow(D, 2, [7], logdet=None).double()
    blocks = [part for part in flow.parts if isinstance(part, Residual)]
    blocks[0].logdet, blocks[1].logdet = Krylov(), Krylov()
    assert stacks(flow, 6) == [0, None, 0, None]
    blocks[1].logdet.terms = 3
    assert stacks(flow, 6) == [None] * 4


def test_large_batches_are_divided_or_left_to_the_blocks() -> None:
    flow = residual_flow(D, 8, [2**7], logdet=Krylov()).double()
    blocks = [i for i, part in enumerate(flow.parts) if isinstance(part, Residual)]
    fits_all = STACKED_FEATURES // 2**7 // 8
    for samples, expected in (
        (fits_all, [0] * 8),
        (fits_all + 1, [0] * 4 + [1] * 4),
        (2 * fits_all, [0] * 4 + [1] * 4),
        (2 * fits_all + 1, [None] * 8),
    ):
        found = stacks(flow, samples)
        assert [found[i] for i in blocks] == expected


def test_contexts_count_as_samples() -> None:
    flow = conditional_residual_flow(D, 3, 3, [7])
    conditioned: Any = flow.condition(torch.zeros(STACKED_FEATURES, 3))
    assert stacks_of(conditioned._steps().passes, torch.zeros(D), 1) == [None] * 9


@pytest.mark.parametrize("batch", [(), (0,), (3, 0)])
def test_single_samples_and_empty_batches(batch: tuple[int, ...]) -> None:
    flow = randomized(residual_flow(D, 3, [7]))
    x = torch.randn(*batch, D, dtype=torch.float64, requires_grad=True)
    y, ladj = flow.call_and_ladj(x)
    (y.sum() + ladj.sum()).backward()
    assert ladj.shape == batch
    assert y.shape == x.shape


def test_recorded_features_and_frozen_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = randomized(residual_flow(D, 3, [7])).requires_grad_(False)
    x = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    with image_features() as features:
        together, separate = both_ways(monkeypatch, lambda: flow, x, [x])
    assert not features
    torch.testing.assert_close(together, separate, rtol=1e-9, atol=1e-9)
