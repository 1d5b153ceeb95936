"""Nested compositions cost in proportion to the number of their parts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import FrameType

import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_resflow import conditional_residual, residual
from pyro_resflow.transforms import (
    ActNorm,
    Compose,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalInverse,
    Inverse,
    OnePassTransform,
    is_deterministic,
    set_logdet,
)

LEVELS = [(4, 20), pytest.param((10, 50), marks=pytest.mark.slow)]
"""Two depths, the second five times the first. At fifty levels a cost that doubles with each would
not come to an end."""


class Shift(OnePassTransform):
    """x + 1, which counts how often it is evaluated."""

    domain = codomain = dist.constraints.real_vector
    evaluations = 0

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        return x + 1, x.new_zeros(x.shape[:-1])

    def _inverse(self, y: Tensor) -> Tensor:
        self.evaluations += 1
        return y - 1

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(y), y.new_zeros(y.shape[:-1])


def scaling() -> ActNorm:
    layer = ActNorm(2, initialized=True)
    torch.nn.init.normal_(layer.log_scale, std=0.1)
    return layer


NESTS: dict[str, Callable[[Transform], Transform]] = {
    "compose": lambda inner: Compose([scaling(), inner]),
    "compose_alone": lambda inner: Compose([inner]),
    "inverse": lambda inner: Inverse(Compose([scaling(), inner])),
    "inv_property": lambda inner: Compose([inner.inv, scaling()]),
    "blocks": lambda inner: Compose([residual(2, [4]), inner]),
    "pyro": lambda inner: Compose([T.ComposeTransformModule([scaling(), inner])]),
    "torch_inverse": lambda inner: Compose([T.ComposeTransform([scaling(), inner.inv]).inv]),
}


def nest(kind: str, levels: int, core: Transform | None = None) -> Transform:
    transform = core if core is not None else scaling()
    for _ in range(levels):
        transform = NESTS[kind](transform)
    return transform


def conditional_nest(levels: int, *, inverse: bool) -> Transform:
    conditional = ConditionalCompose([conditional_residual(2, 3, [4])])
    for _ in range(levels):
        conditional = ConditionalCompose([ConditionalAffine(2, 3, [4]), conditional])
        conditional = ConditionalInverse(conditional) if inverse else conditional
    return conditional


def calls(function: Callable[[], object]) -> int:
    """How many calls of Python functions a function makes."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def is_linear(costs: list[int]) -> bool:
    """Whether five times the levels cost at most six times as much; a square would be at 25.

    Solvers take a few steps more in a deeper nest.
    """
    few, many = costs
    return many <= 6 * few


def uses(transform: Transform) -> dict[str, Callable[[], object]]:
    """What a user does with a transform of vectors of two entries."""
    x = torch.randn(3, 2)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    density = dist.TransformedDistribution(base, [transform])
    return {
        "distribution": lambda: dist.TransformedDistribution(base, [transform]),
        "domain": lambda: (transform.domain, transform.codomain),
        "call": lambda: transform(x),
        "inverse": lambda: transform.inv(x.clone()),
        "log_abs_det_jacobian": lambda: transform.log_abs_det_jacobian(x, x.clone()),
        "log_prob": lambda: density.log_prob(x.clone()),
        "rsample": lambda: density.rsample((3,)),
        "log_prob_without_gradients": torch.no_grad()(lambda: density.log_prob(x.clone())),
        "sample": lambda: density.sample((3,)),
        "state_dict": lambda: transform.state_dict(),
        "clear_cache": lambda: transform.clear_cache(),
        "is_deterministic": lambda: is_deterministic(transform),
    }


@pytest.mark.parametrize("depths", LEVELS)
@pytest.mark.parametrize("kind", sorted(NESTS))
def test_every_use_costs_in_proportion_to_the_levels(kind: str, depths: tuple[int, ...]) -> None:
    costs: dict[str, list[int]] = {}
    for levels in depths:
        for name, use in uses(nest(kind, levels)).items():
            costs.setdefault(name, []).append(calls(use))
    assert [(name, found) for name, found in costs.items() if not is_linear(found)] == []


FOREIGN: dict[str, Callable[[Transform], Transform]] = {
    "torch": lambda inner: T.ComposeTransform([inner, T.AffineTransform(0.1, 1.1)]).inv,
    "torch_alone": lambda inner: T.ComposeTransform([inner.inv]),
    "pyro": lambda inner: T.ComposeTransformModule([inner]).inv,
}


OUTERMOST: dict[str, Callable[[Transform], Transform]] = {
    "compose": lambda t: Compose([t]),
    "inverse": Inverse,
}


@pytest.mark.parametrize("outermost", sorted(OUTERMOST))
@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_one_of_ours_around_a_nest_of_torch_makes_it_linear(kind: str, outermost: str) -> None:
    # torch's own evaluation costs about five times as much with each level: 16 would not end
    costs: dict[str, list[int]] = {}
    for levels in (4, 16):
        transform = core = scaling()
        held = []  # torch's inverses refer to each other weakly
        for _ in range(levels):
            transform = FOREIGN[kind](transform)
            held.append(transform)
        ours = OUTERMOST[outermost](transform)
        used = uses(ours)
        used.pop("inverse")  # of an inverse, that is torch's own transform
        for name, use in used.items():
            costs.setdefault(name, []).append(calls(use))
        x = torch.randn(3, 2)
        y, ladj = ours.call_and_ladj(x)
        if kind != "torch":  # an even number of inversions of one transform
            forward = isinstance(ours, Compose)
            torch.testing.assert_close(y, (core if forward else core.inv)(x))
            expected = core.log_scale.sum().expand(3)
            torch.testing.assert_close(ladj, expected if forward else -expected)
    assert [(name, found) for name, found in costs.items() if not is_linear(found)] == []


@pytest.mark.parametrize("depths", LEVELS)
@pytest.mark.parametrize("inverse", [False, True])
def test_a_conditional_nest_costs_in_proportion_to_the_levels(
    inverse: bool, depths: tuple[int, ...]
) -> None:
    context = torch.randn(3, 3)
    costs: dict[str, list[int]] = {}
    for levels in depths:
        conditional = conditional_nest(levels, inverse=inverse)
        costs.setdefault("condition", []).append(calls(lambda c=conditional: c.condition(context)))
        for name, use in uses(conditional.condition(context)).items():
            costs.setdefault(name, []).append(calls(use))
    assert [(name, found) for name, found in costs.items() if not is_linear(found)] == []


@pytest.mark.parametrize("kind", sorted(NESTS))
def test_every_part_is_evaluated_once(kind: str) -> None:
    core = Shift()
    transform = nest(kind, 7, core)
    x = torch.randn(3, 2)
    y = transform(x)
    transform.log_abs_det_jacobian(x, y)
    assert core.evaluations == 1
    with torch.no_grad():
        transform.inv(y.clone())
    assert core.evaluations == 2


def test_set_logdet_clears_every_cache_once() -> None:
    costs = []
    for levels in (4, 20):
        flow = nest("blocks", levels, residual(2, [4]))
        costs.append(calls(lambda flow=flow: set_logdet(flow, flow.parts[0].logdet)))
    assert is_linear(costs)


@pytest.mark.parametrize("kind", sorted(NESTS))
def test_a_nest_is_the_composition_of_its_parts(kind: str) -> None:
    transform = nest(kind, 5).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    y = transform(x)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(transform, row[None])[0, :, 0] for row in x]
    )
    ladj = transform.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(ladj, jacobian.det().abs().log())
    torch.testing.assert_close(transform.inv(y.clone()), x, rtol=1e-7, atol=1e-8)


def test_entries_and_vectors_mix_within_a_nest() -> None:
    """Log-determinants of entries are summed over the vector that a part further in takes."""
    inner = T.ComposeTransformModule([T.TanhTransform(), T.AffineTransform(0.0, 2.0)])
    flow = Compose([Compose([T.AffineTransform(0.1, 0.5), inner]), scaling().double()])
    assert (flow.domain.event_dim, flow.codomain.event_dim) == (1, 1)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    y, ladj = flow.call_and_ladj(x)
    expected = T.ComposeTransform(flow.parts).log_abs_det_jacobian(x, y)
    torch.testing.assert_close(ladj, expected)
    torch.testing.assert_close(flow.inverse_and_ladj(y)[1], expected)
    z, entries = Inverse(inner).call_and_ladj(inner(x))
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(entries, -math.log(2) - (1 - x.tanh().square()).log())


def test_the_empty_composition_within_a_nest_is_the_identity() -> None:
    flow = Compose([T.ComposeTransform([T.identity_transform, scaling()]), T.identity_transform])
    x = torch.randn(4, 2)
    torch.testing.assert_close(flow.inv(flow(x).clone()), x)
    assert flow.call_and_ladj(x)[1].shape == (4,)
