"""Properties of all compositions of the registry's transforms, for random events."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Literal

import pyro.distributions as dist
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_resflow.logdet import (
    AdaptiveKrylov,
    Frozen,
    Krylov,
    PowerSeries,
    RussianRoulette,
    StochasticEstimator,
)
from pyro_resflow.transforms import Compose, Inverse, Monotone, Residual
from tests.threads import at_once, eager_switching
from tests.transforms.registry import TRANSFORMS, unit

# The same examples at every run, and none that fails for the time it took.
SETTINGS = settings(
    derandomize=True,
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow],
)
FEWER = settings(SETTINGS, max_examples=40)

VECTORS = [(1,), (2,), (5,), (16,)]
IMAGES = [(1, 4, 4), (4, 2, 2), (2, 3, 4), (3, 2, 3)]

# These have the shape of their images in their recipe.
OF_ONE_SHAPE = {
    "dequantization",
    "flow_plus_plus",
    "flow_plus_plus_as_for_imagenet64",
    "glow",
    "i_resnet",
    "image_flow",
    "image_flow_dense_nets",
    "image_flow_factor_out",
    "image_flow_monotone",
    "multiscale",
    "multiscale_learned_prior",
    "real_nvp",
    "variational_dequantization",
}

# What others ask of the sizes of an event.
ASKS: dict[str, Callable[..., bool]] = {
    **dict.fromkeys(
        [
            "compose_with_pyros",
            "coupling_channels",
            "coupling_channels_mixture",
            "coupling_step",
            "coupling_vector",
            "coupling_vector_mixture",
            "inverse_of_pyros",
            "split_prior",
        ],
        lambda first, *_: first > 1,
    ),
    "channel_permutation": lambda c, h, w: c == 3,
    "coupling_columns": lambda c, h, w: w % 2 == 0,
    "coupling_columns_mixture": lambda c, h, w: w % 2 == 0,
    "split": lambda c, h, w: c - c // 2 == 2,
    "squeeze": lambda c, h, w: h % 2 == w % 2 == 0,
}

# These give pixels, or pixels just outside of [0, 1], and take no other values back.
TO_PIXELS = {"marginal_gaussianization_image", "marginal_gaussianization_pixels"}

# Where v has come from another image than theirs, these have no inverse of it.
ONE_WAY = {"dequantization", "variational_dequantization"}

# Pyro's own couplings take no empty batches.
OF_PYRO = {"compose_with_pyros", "inverse_of_pyros"}

FILLED = [(), (1,), (3,), (2, 3)]
EMPTY = [(0,), (2, 0)]

# The solvers stop at residuals of 2e-7 and 2e-11, and the rest only rounds. Four parts, each of
# which may stretch that a few times, enlarge it by less than some hundred.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "strided": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@dataclass(frozen=True)
class Events:
    """What a transform takes or gives: tensors of a shape, with entries between two bounds."""

    shape: tuple[int, ...]
    lower: float
    upper: float

    def within(self, other: "Events") -> bool:
        inside = self.lower >= other.lower and self.upper <= other.upper
        return self.shape == other.shape and inside


@dataclass(frozen=True)
class Part:
    """A transform of the registry, built for an event shape and run in a direction."""

    name: str
    event_shape: tuple[int, ...]
    direction: Literal["forward", "inv", "Inverse"]

    def build(self) -> Transform:
        transform = copy.deepcopy(built(self.name, self.event_shape))
        if self.direction == "forward":
            return transform
        return Inverse(transform) if self.direction == "Inverse" else transform.inv

    @property
    def takes(self) -> Events:
        return self._ends[0]

    @property
    def gives(self) -> Events:
        return self._ends[1]

    @property
    def squashes(self) -> bool:
        return self.takes.lower == -inf < self.gives.lower

    @property
    def _ends(self) -> tuple[Events, Events]:
        forward = self.direction == "forward"
        transform = built(self.name, self.event_shape)
        inner = Events(self.event_shape, *bounds(transform.domain))
        if forward and inner.lower == -inf and TRANSFORMS[self.name].draw is unit:
            inner = Events(self.event_shape, 0, 1)  # what the registry gives it
        shape = tuple(transform.forward_shape(self.event_shape))
        outer = Events(shape, *bounds(transform.codomain))
        if self.name in TO_PIXELS:
            outer = Events(shape, 0, 1)
        return (inner, outer) if forward else (outer, inner)


@dataclass(frozen=True)
class Problem:
    """A composition, and a batch to give it."""

    parts: tuple[Part, ...]
    batch_shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    seed: int

    def flow(self) -> Compose:
        return Compose([part.build() for part in self.parts]).to(self.dtype)

    def inputs(self) -> Tensor:
        torch.manual_seed(self.seed)
        first = self.parts[0].takes
        draw = torch.randn if first.lower == -inf else unit
        return LAYOUTS[self.layout](draw(*self.batch_shape, *first.shape).to(self.dtype))


def bounds(constraint: constraints.Constraint) -> tuple[float, float]:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint is constraints.real:
        return -inf, inf
    return constraint.lower_bound, constraint.upper_bound


@cache
def built(name: str, event_shape: tuple[int, ...]) -> Transform:
    return dataclasses.replace(TRANSFORMS[name], event_shape=event_shape).build()


@cache
def all_parts() -> list[Part]:
    parts = []
    for name, case in sorted(TRANSFORMS.items()):
        same_rank = VECTORS if len(case.event_shape) == 1 else IMAGES
        shapes = [case.event_shape] if name in OF_ONE_SHAPE else same_rank
        for shape in filter(lambda s: ASKS.get(name, lambda *_: True)(*s), shapes):
            directions = ("forward",) if name in ONE_WAY else ("forward", "inv", "Inverse")
            parts += [Part(name, shape, direction) for direction in directions]
    return parts


@cache
def after(events: Events) -> list[Part]:
    """Not what ends in a sigmoid: of what others have stretched, that leaves 0 and 1."""
    return [part for part in all_parts() if events.within(part.takes) and not part.squashes]


def estimating(transform: Transform) -> list[Residual | Monotone]:
    """The blocks of a transform that estimate their log-determinant."""
    modules = transform.modules() if isinstance(transform, nn.Module) else ()
    return [module for module in modules if isinstance(module, Residual | Monotone)]


@cache
def estimated_parts() -> list[Part]:
    return [part for part in all_parts() if estimating(built(part.name, part.event_shape))]


@st.composite
def problems(
    draw: st.DrawFn,
    batch_shapes: Sequence[tuple[int, ...]] = (*FILLED, *EMPTY),
    layouts: Sequence[str] = tuple(LAYOUTS),
    first: Callable[[], list[Part]] = all_parts,
) -> Problem:
    parts = [draw(st.sampled_from(first()))]
    for _ in range(draw(st.integers(0, 3))):
        fitting = after(parts[-1].gives)
        if fitting:
            parts.append(draw(st.sampled_from(fitting)))
    if any(part.name in OF_PYRO for part in parts):
        batch_shapes = [shape for shape in batch_shapes if 0 not in shape]
    return Problem(
        tuple(parts),
        draw(st.sampled_from(batch_shapes)),
        draw(st.sampled_from([torch.float32, torch.float64])),
        draw(st.sampled_from(layouts)),
        draw(st.integers(0, 1000)),
    )


def assert_close(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def per_sample(ladj: Tensor, batch_dim: int) -> Tensor:
    """What a part that acts on smaller events gives, summed over the batch's."""
    return ladj.flatten(batch_dim).sum(-1) if ladj.dim() > batch_dim else ladj


@SETTINGS
@given(problem=problems())
def test_shapes(problem: Problem) -> None:
    flow, x = problem.flow(), problem.inputs()
    y = flow(x)
    ladj = flow.log_abs_det_jacobian(x, y)
    assert y.shape == (*problem.batch_shape, *problem.parts[-1].gives.shape)
    assert flow.forward_shape(x.shape) == flow.inv.inverse_shape(x.shape) == y.shape
    assert flow.inverse_shape(y.shape) == flow.inv.forward_shape(y.shape) == x.shape
    assert flow.inv(y.clone()).shape == x.shape
    assert ladj.shape == x.shape[: x.dim() - flow.domain.event_dim]
    assert flow.inv.log_abs_det_jacobian(y, x).shape == ladj.shape
    assert y.dtype == ladj.dtype == problem.dtype


@SETTINGS
@given(problem=problems())
def test_the_layout_of_the_input_does_not_matter(problem: Problem) -> None:
    flow, x = problem.flow(), problem.inputs()
    dense = x.clone(memory_format=torch.contiguous_format)
    y, ladj = flow.call_and_ladj(x)
    assert torch.equal(x, dense)  # not written to
    expected = flow.call_and_ladj(dense)
    assert_close(y, expected[0])
    assert_close(ladj, expected[1])


@SETTINGS
@given(problem=problems())
def test_inverse(problem: Problem) -> None:
    flow, x = problem.flow(), problem.inputs()
    y = flow(x)
    assert_close(flow._inverse(y), x)
    assert_close(flow.inv(y.clone()), x)
    assert_close(flow.inv.inv(x.clone()), y)


@SETTINGS
@given(problem=problems())
def test_the_inverse_has_the_opposite_log_det(problem: Problem) -> None:
    flow, x = problem.flow(), problem.inputs()
    y = flow(x)
    ladj = flow.log_abs_det_jacobian(x, y)
    assert_close(flow.inv.log_abs_det_jacobian(y, x), -ladj)
    assert_close(flow.inv.call_and_ladj(y)[1], -ladj)


@FEWER
@given(problem=problems(FILLED))
def test_log_det_is_that_of_the_jacobian(problem: Problem) -> None:
    flow, x = problem.flow(), problem.inputs()
    sample = x.flatten(0, len(problem.batch_shape) - 1)[0] if problem.batch_shape else x
    for transform, point in (flow, sample), (flow.inv, flow(sample).detach()):
        jacobian = torch.autograd.functional.jacobian(transform, point)
        expected = torch.linalg.slogdet(jacobian.reshape(point.numel(), point.numel()))[1]
        assert_close(transform.call_and_ladj(point)[1].sum(), expected)


@SETTINGS
@given(problem=problems())
def test_inverse_of_the_inverse(problem: Problem) -> None:
    flow, x = problem.flow(), problem.inputs()
    twice = Inverse(Inverse(flow))
    assert twice.inv.inv is flow
    assert flow.inv.inv is flow
    assert [id(p) for p in twice.parameters()] == [id(p) for p in flow.parameters()]
    y, ladj = flow.call_and_ladj(x)
    assert_close(twice(x), y)
    assert_close(twice.log_abs_det_jacobian(x, y), ladj)
    assert_close(twice.inv(y), x)


@SETTINGS
@given(problem=problems())
def test_log_dets_add_up(problem: Problem) -> None:
    flow, x = problem.flow(), problem.inputs()
    batch_dim = len(problem.batch_shape)
    y, ladj = flow.call_and_ladj(x)
    total, here = x.new_zeros(problem.batch_shape), x
    for part in (part.build().to(problem.dtype) for part in problem.parts):
        there = part(here)
        total = total + per_sample(part.log_abs_det_jacobian(here, there), batch_dim)
        here = there
    assert_close(y, here)
    assert_close(per_sample(ladj, batch_dim), total)


@FEWER
@given(
    problem=problems([(5,)], ["contiguous"], estimated_parts),
    estimator=st.sampled_from([Krylov, AdaptiveKrylov, PowerSeries, RussianRoulette]),
)
def test_a_sample_does_not_depend_on_its_neighbours(
    problem: Problem, estimator: type[StochasticEstimator]
) -> None:
    flow, x = problem.flow(), problem.inputs()
    for part in estimating(flow):
        part.logdet = estimator(probe=Frozen())
    _, ladj = flow.call_and_ladj(x)
    order = torch.randperm(len(x))
    assert_close(flow.call_and_ladj(x[order])[1], ladj[order])
    assert_close(torch.stack([flow.call_and_ladj(sample)[1] for sample in x]), ladj)
    others = dataclasses.replace(problem, seed=problem.seed + 1).inputs()
    others[2] = x[2]
    assert_close(flow.call_and_ladj(others)[1][2], ladj[2])


@settings(SETTINGS, max_examples=20)  # each scores and differentiates eighteen batches
@given(problem=problems(FILLED))
def test_threads_score_as_one_does(problem: Problem) -> None:
    """From the first call, which measures the norms of the weights."""
    event_shape = problem.parts[0].takes.shape
    zeros = torch.zeros(event_shape, dtype=problem.dtype)
    base = dist.Normal(zeros, 1.0).to_event(len(event_shape))
    alone, shared = (dist.TransformedDistribution(base, [problem.flow()]) for _ in range(2))
    seeds = [problem.seed + i for i in range(3)]
    inputs = [dataclasses.replace(problem, seed=seed).inputs() for seed in seeds]
    data = [alone.transforms[0]._call(x).detach().requires_grad_() for x in inputs]

    def scores(flow: dist.TransformedDistribution, first: int) -> list[tuple[Tensor, Tensor]]:
        batches = [*data[first:], *data[:first]]
        densities = [flow.log_prob(y) for y in batches]
        return [
            (density, torch.autograd.grad(density.sum(), y)[0])
            for density, y in zip(densities, batches, strict=True)
        ]

    expected = [scores(alone, first) for first in range(3)]
    with eager_switching():
        found = at_once([lambda first=first: scores(shared, first) for first in range(3)])
    tolerance = TOLERANCE[problem.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
