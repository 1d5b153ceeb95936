"""torch.func and forward mode through log_prob, rsample and every transform."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyro
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributions import Transform
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from pyro_resflow import residual
from pyro_resflow.logdet import AdaptiveKrylov, Exact, Frozen, Gaussian, Krylov
from pyro_resflow.transforms.core.evaluation import call_and_ladj, inverse_and_ladj
from tests.derivatives import gradient, hessian_by_differences
from tests.transforms.conditional_registry import CONDITIONAL
from tests.transforms.contractions import CONTRACTIONS, contraction, density, point
from tests.transforms.registry import TRANSFORMS

Scalar = Callable[[Tensor], Tensor]
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


@pytest.fixture(autouse=True)
def _double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def some(names: Iterable[str], *chosen: str) -> list[object]:
    """All names, those that are not chosen for the slow tests."""
    return [pytest.param(n, marks=() if n in chosen else pytest.mark.slow) for n in names]


def check_all(function: Scalar, x: Tensor) -> None:
    """Every transformation of a scalar function of a vector, against torch's engine."""
    first, second, v = gradient(function, x), hessian_by_differences(function, x), point(len(x))
    batch = torch.stack([x, x + 0.1])
    torch.testing.assert_close(grad(function)(x), first)
    torch.testing.assert_close(jacrev(function)(x), first)
    torch.testing.assert_close(jacfwd(function)(x), first)
    torch.testing.assert_close(jvp(function, (x,), (v,))[1], first @ v)
    torch.testing.assert_close(vmap(function)(batch), torch.stack([*map(function, batch)]))
    torch.testing.assert_close(vmap(grad(function))(batch)[0], first)
    torch.testing.assert_close(vmap(hessian(function))(batch)[0], second, **CLOSE)
    torch.testing.assert_close(jacrev(jacrev(function))(x), second, **CLOSE)
    torch.testing.assert_close(jacfwd(jacfwd(function))(x), second, **CLOSE)
    torch.testing.assert_close(jacrev(jacfwd(function))(x), second, **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(jvp(function, (x,), (v,))[1], first @ v)
    check_forward_mode(function, x, first, second)


def check_forward_mode(function: Scalar, x: Tensor, first: Tensor, second: Tensor) -> None:
    """The tangent of the value, and that of the gradient."""
    v = point(len(x))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent
        torch.testing.assert_close(tangent, first @ v)
        dual = forward_ad.make_dual(x.clone().requires_grad_(), v)
        (slope,) = torch.autograd.grad(function(dual), dual)
        torch.testing.assert_close(forward_ad.unpack_dual(slope).tangent, second @ v, **CLOSE)


@pytest.mark.parametrize("name", some(CONTRACTIONS, "density", "flow", "monotone", "module"))
def test_log_densities(name: str) -> None:
    check_all(density(contraction(name, 2, Exact()), 2).log_prob, point(2))


@pytest.mark.parametrize("name", some(["density", "monotone", "conditional_flow"], "monotone"))
def test_log_densities_of_one_dimension(name: str) -> None:
    check_all(density(contraction(name, 1, Exact()), 1).log_prob, point(1))


@pytest.mark.parametrize("name", some(["sampling", "monotone", "conditional"], "conditional"))
def test_values_in_both_directions(name: str) -> None:
    transform = contraction(name, 2, Exact())
    for direction in (transform, transform.inv):
        check_all(lambda x, t=direction: t(x).pow(3).sum(), point(2))


def test_log_densities_inside_contexts_and_over_them() -> None:
    transform = contraction("conditional", 2, Exact()).conditional
    x, contexts = point(2), point(2, 3)

    def log_prob(context: Tensor) -> Tensor:
        return density(transform.condition(context), 2).log_prob(x)

    first = gradient(log_prob, contexts[0])
    torch.testing.assert_close(grad(log_prob)(contexts[0]), first)
    torch.testing.assert_close(jacfwd(log_prob)(contexts[0]), first)
    second = hessian_by_differences(log_prob, contexts[0])
    torch.testing.assert_close(hessian(log_prob)(contexts[0]), second, **CLOSE)
    torch.testing.assert_close(jacfwd(jacfwd(log_prob))(contexts[0]), second, **CLOSE)
    torch.testing.assert_close(
        vmap(log_prob)(contexts), torch.stack([log_prob(context) for context in contexts])
    )


@pytest.mark.parametrize("name", ["sampling", "density", "flow"])
def test_reparametrized_samples(name: str) -> None:
    transform = contraction(name, 2, Exact())

    def draw(loc: Tensor) -> Tensor:
        base = torch.distributions.Normal(loc, 1.0)
        base = torch.distributions.Independent(base, 1)
        return torch.distributions.TransformedDistribution(base, [transform]).rsample()

    loc = point(2)

    def at_seed(function: Callable[[], Tensor]) -> Tensor:
        torch.manual_seed(3)
        return function()

    expected = at_seed(lambda: torch.autograd.functional.jacobian(draw, loc))
    torch.testing.assert_close(at_seed(lambda: jacrev(draw)(loc)), expected)
    torch.testing.assert_close(at_seed(lambda: jacfwd(draw, randomness="same")(loc)), expected)


def test_norms_measured_inside_a_transformation_outlive_it() -> None:
    transform = contraction("flow", 2, Exact())
    x = point(2)
    value = jacfwd(density(transform, 2).log_prob)(x)
    transform.load_state_dict(transform.state_dict())
    torch.testing.assert_close(gradient(density(transform, 2).log_prob, x), value)
    assert hessian(density(transform, 2).log_prob)(x).isfinite().all()


def test_functional_call_of_a_flow() -> None:
    transform = contraction("density", 2, Exact())
    parameters = {name: p.detach() for name, p in transform.named_parameters()}
    x = point(2, 3)

    class LogProb(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = transform

        def forward(self, x: Tensor) -> Tensor:
            return density(self.transform, 2).log_prob(x)

    model = LogProb()
    parameters = {f"transform.{name}": value for name, value in parameters.items()}

    def log_prob(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,))

    each = vmap(grad(log_prob), in_dims=(None, 0))(parameters, x)
    model(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)


SAMPLE = ["coupling_vector_mixture", "coupling_step", "multiscale", "compose_with_pyros"]


def check_directions(transform: Transform, x: Tensor) -> None:
    """vmap, the gradient under vmap, and the tangent of the gradient, in both directions."""
    with torch.no_grad():
        y = transform(x)
    for evaluate, start in ((call_and_ladj, x), (inverse_and_ladj, y)):

        def function(x: Tensor, evaluate: object = evaluate) -> Tensor:
            value, ladj = evaluate(transform, x)
            return value.square().mean() + ladj.sum()

        v = torch.randn_like(start)
        batch = torch.stack([start, start + 1e-3 * v])
        slopes = torch.stack([gradient(function, each) for each in batch])
        torch.testing.assert_close(vmap(function)(batch)[0], function(start))
        torch.testing.assert_close(vmap(grad(function))(batch), slopes)
        torch.testing.assert_close(
            jvp(function, (start,), (v,))[1], (slopes[0] * v).sum(), rtol=1e-6, atol=1e-8
        )
        tangent = jvp(grad(function), (start,), (v,))[1]
        ahead, behind = (gradient(function, start + h * v) for h in (1e-6, -1e-6))
        largest = float(slopes.abs().max())
        torch.testing.assert_close(
            tangent, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-8 * max(1.0, largest)
        )


@pytest.mark.parametrize("name", some(TRANSFORMS, *SAMPLE))
def test_every_transform(name: str) -> None:
    case = TRANSFORMS[name]
    torch.set_default_dtype(torch.float32)
    transform = case.build()
    if isinstance(transform, torch.nn.Module):
        transform.double()
    check_directions(transform, case.draw(*case.event_shape).double())


@pytest.mark.parametrize("name", some(CONDITIONAL, "conditional_coupling_mixture"))
def test_every_conditional_transform(name: str) -> None:
    check_directions(CONDITIONAL[name](3, 2).condition(point(2)), point(3))


# with as many products as dimensions, so that the draws are independent: the number of further
# ones would be the same for all
NOISY = {
    "krylov": lambda: Krylov(2),
    "keep": lambda: Krylov(2, memory="keep"),
    "adaptive": lambda: AdaptiveKrylov(1e-9),
    "probes": lambda: Krylov(2, num_probes=2, probe=Gaussian()),
}


FIRST: dict[str, Callable[[Scalar, Tensor], Tensor]] = {
    "vmap": lambda f, x: vmap(f, randomness="different")(x)[:, None],
    "grad": lambda f, x: vmap(grad(f), randomness="different")(x),
    "jacrev": lambda f, x: vmap(jacrev(f), randomness="different")(x),
    "jacfwd": lambda f, x: vmap(jacfwd(f, randomness="different"), randomness="different")(x),
    "forward mode": lambda f, x: tangents(f, x),
}


@pytest.mark.parametrize("way", FIRST)
@pytest.mark.parametrize("name", ["sampling", "density"])
def test_first_derivatives_of_estimates_are_unbiased(name: str, way: str) -> None:
    transform = contraction(name, 2, Exact())
    log_prob = density(transform, 2).log_prob
    x, draws = point(2), 1500
    slope = gradient(log_prob, x)
    truth = {"vmap": log_prob(x).detach()[None], "forward mode": slope.sum()[None]}.get(way, slope)
    block = transform if name == "sampling" else transform.inv
    for make in NOISY.values():
        block.logdet = make()
        found = FIRST[way](log_prob, x.repeat(draws, 1)).detach()
        error = found.std(0) / draws**0.5
        assert (error > 1e-8).all()
        assert ((found.mean(0) - truth).abs() < 4.5 * error).all()


def tangents(function: Scalar, x: Tensor) -> Tensor:
    """The derivative of each along ones, shape ``(N, 1)``."""
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(x, torch.ones_like(x)))
        return forward_ad.unpack_dual(dual).tangent[:, None]


def test_vmap_that_does_not_say_whose_noise_is_refused_by_name() -> None:
    log_prob = density(contraction("density", 2, Krylov()), 2).log_prob
    for randomness in ("error", "same"):
        with pytest.raises(RuntimeError, match=r"logdet: .*randomness='different'"):
            vmap(log_prob, randomness=randomness)(point(2, 3))


def test_vmap_of_frozen_noise_is_the_batch() -> None:
    log_prob = density(contraction("density", 2, Krylov(probe=Frozen())), 2).log_prob
    x = point(2, 3)
    torch.testing.assert_close(vmap(log_prob)(x), log_prob(x))


@pytest.mark.parametrize("name", ["sampling", "monotone"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_vmap_of_inverses_without_validation_leaves_nan_with_its_sample(
    name: str, bad: float
) -> None:
    transform = contraction(name, 2, Exact())
    x = point(2, 3)
    y = transform(x).detach().clone()
    y[1, 0] = bad
    with pytest.raises(ValueError, match="y: expected finite values"):
        vmap(transform.inv)(y)
    with pyro.validation_enabled(False):
        found = vmap(transform.inv)(y)
        slopes = vmap(jacrev(transform.inv))(y)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], x[[0, 2]])
    expected = torch.stack([torch.linalg.inv(jacrev(transform)(x[i])) for i in (0, 2)])
    torch.testing.assert_close(slopes[[0, 2]], expected)


def test_nested_vmap_over_inputs_and_contexts() -> None:
    transform = contraction("conditional", 2, Exact()).conditional
    x, contexts = point(2, 3), point(2, 4)
    together = vmap(vmap(lambda c, x: transform.condition(c).inv(x), (None, 0)), (0, None))
    expected = transform.condition(contexts[:, None]).inv(x)
    torch.testing.assert_close(together(contexts, x), expected)
    turned = vmap(lambda c, x: transform.condition(c).inv(x), in_dims=(None, 1))
    torch.testing.assert_close(turned(contexts[0], x.T), expected[0])


def test_vmap_over_weights_is_refused_by_name() -> None:
    blocks = [residual(2, [4]) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(blocks)

    def value(parameters, buffers):  # type: ignore[no-untyped-def]
        return torch.func.functional_call(blocks[0], (parameters, buffers), (torch.ones(3, 2),))

    with pytest.raises(ValueError, match=r"weight of LipschitzLinear: .*torch\.func\.vmap maps"):
        vmap(value)(parameters, buffers)
    for index, block in enumerate(blocks):  # the remedy
        own = [{name: each[index] for name, each in s.items()} for s in (parameters, buffers)]
        torch.testing.assert_close(value(*own), block(torch.ones(3, 2)))
