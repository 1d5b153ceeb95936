from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import Transform

pytest.importorskip("zuko")

from pyro_resflow.interop.zuko import (
    from_zuko,
    to_zuko,
)

import zuko  # isort: skip  # after the adapter, which keeps the validation of arguments

from pyro_resflow import conditional_residual, residual, residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.transforms import Compose, Inverse, initialize
from tests.interop.zuko_flows import ZUKO_FLOWS, C, D

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def tolerance(dtype: torch.dtype, name: str = "") -> float:
    """Rounding, or what the ODE solver of a continuous flow allows its log-determinant."""
    if name == "cnf":  # 1e-5, a hundred times that for the trace
        return 1e-3
    return 2e-5 if dtype == torch.float32 else 1e-8


def normal(size: int = D) -> dist.Distribution:
    return dist.Normal(torch.zeros(size), torch.ones(size)).to_event(1)


def zuko_base(size: int = D) -> zuko.lazy.LazyDistribution:
    return zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(size), torch.ones(size), buffer=True
    )


def exact_flow(fast: str = "density") -> Transform:
    flow = residual_flow(D, 2, [8], fast=fast, logdet=Exact())
    initialize(flow, torch.randn(50, D))
    return flow


class TestToZuko:
    @pytest.mark.parametrize("fast", ["density", "sampling"])
    def test_a_flow_is_the_same_distribution(self, fast: str, dtype: torch.dtype) -> None:
        t = exact_flow(fast)
        flow = zuko.lazy.Flow(to_zuko(t), zuko_base())
        density = dist.TransformedDistribution(normal(), [t])
        x = torch.randn(7, D)
        torch.testing.assert_close(flow().log_prob(x), density.log_prob(x))
        torch.manual_seed(1)
        sample = flow().sample((5,))
        torch.manual_seed(1)
        torch.testing.assert_close(sample, density.sample((5,)))

    def test_sample_and_density_agree(self, dtype: torch.dtype) -> None:
        flow = zuko.lazy.Flow(to_zuko(exact_flow()), zuko_base())
        x, log_prob = flow().rsample_and_log_prob((6,))
        tol = tolerance(dtype)
        torch.testing.assert_close(flow().log_prob(x), log_prob, atol=tol, rtol=tol)

    def test_value_and_log_determinant_take_one_pass(self) -> None:
        t = residual(D, [8], fast="density", logdet=Exact())
        with (
            mock.patch.object(Exact, "value_and_trace", autospec=True) as estimate,
            mock.patch.object(t.transform.net, "evaluate") as evaluate,
        ):
            estimate.side_effect = lambda exact, net, x, function: (x, x[:, 0])
            zuko.lazy.Flow(to_zuko(t), zuko_base())().log_prob(torch.randn(7, D))
        assert estimate.call_count == 1
        assert not evaluate.called  # the value comes from the same pass

    def test_it_trains_among_zukos_own(self) -> None:
        t = exact_flow()
        nsf = zuko.flows.NSF(D, transforms=1, hidden_features=(8,))
        flow = zuko.lazy.Flow([nsf.transform, to_zuko(t)], zuko_base())
        assert {id(p) for p in t.parameters()} <= {id(p) for p in flow.parameters()}
        x = torch.randn(200, D) * 0.5 + 1
        optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            losses.append(-flow().log_prob(x).mean())
            losses[-1].backward()
            assert all(p.grad is not None for p in t.parameters())
            optimizer.step()
        assert losses[-1] < losses[0] - 0.3

    def test_conditional(self, dtype: torch.dtype) -> None:
        t = conditional_residual(D, C, [8], fast="density", logdet=Exact())
        flow = zuko.lazy.Flow(to_zuko(t), zuko_base())
        c, x = torch.randn(7, C), torch.randn(7, D)
        expected = dist.TransformedDistribution(normal(), [t.condition(c)]).log_prob(x)
        torch.testing.assert_close(flow(c).log_prob(x), expected)
        assert flow(c).sample((4,)).shape == (4, 7, D)
        assert not torch.allclose(flow(-c).log_prob(x), expected)
        flow(c).log_prob(x).sum().backward()
        assert all(p.grad is not None for p in t.parameters())

    def test_conditional_needs_a_context(self) -> None:
        flow = zuko.lazy.Flow(to_zuko(conditional_residual(D, C, [8])), zuko_base())
        with pytest.raises(ValueError, match=r"c: .*context"):
            flow()

    def test_an_unconditional_transform_ignores_the_context(self) -> None:
        t = exact_flow()
        flow = zuko.lazy.Flow(to_zuko(t), zuko_base())
        x = torch.randn(7, D)
        torch.testing.assert_close(flow(torch.randn(7, C)).log_prob(x), flow().log_prob(x))

    @pytest.mark.parametrize("make", [T.affine_coupling, T.spline])
    def test_pyros_own_transforms(self, make: Callable[[int], Transform]) -> None:
        t = make(D)
        flow = zuko.lazy.Flow(to_zuko(t), zuko_base())
        assert {id(p) for p in t.parameters()} == {id(p) for p in flow.parameters()}
        x = torch.randn(7, D)
        expected = dist.TransformedDistribution(normal(), [t]).log_prob(x)
        torch.testing.assert_close(flow().log_prob(x), expected)

    def test_inverse_and_back(self) -> None:
        t = exact_flow()
        lazy = to_zuko(t)
        x = torch.randn(7, D)
        torch.testing.assert_close(lazy.inv()(lazy()(x)), x)
        torch.testing.assert_close(from_zuko(lazy)(x), t(x))

    @pytest.mark.parametrize("thing", [T.AffineTransform(0.0, 2.0), "flow", torch.nn.Linear(2, 2)])
    def test_other_things_are_refused(self, thing: object) -> None:
        with pytest.raises(ValueError, match="transform: expected a TransformModule"):
            to_zuko(thing)


@pytest.mark.parametrize("name", ZUKO_FLOWS)
class TestFromZuko:
    def test_the_distribution_is_the_same(self, name: str, dtype: torch.dtype) -> None:
        flow = ZUKO_FLOWS[name]()
        density = dist.TransformedDistribution(normal(), [from_zuko(flow)])
        x = 0.5 * torch.randn(7, D)
        torch.testing.assert_close(density.log_prob(x), flow().log_prob(x))
        assert density.event_shape == (D,)
        assert density.support.event_dim == 1

    def test_both_directions_and_their_log_determinants(
        self, name: str, dtype: torch.dtype
    ) -> None:
        t = from_zuko(ZUKO_FLOWS[name]())
        x = 0.5 * torch.randn(4, 7, D)
        y, ladj = t.call_and_ladj(x)
        back, same = t.inverse_and_ladj(y)
        tol = tolerance(dtype, name)
        assert ladj.shape == (4, 7)
        torch.testing.assert_close(back, x, atol=tol, rtol=tol)
        torch.testing.assert_close(same, ladj, atol=tol, rtol=tol)
        torch.testing.assert_close(t.log_abs_det_jacobian(x, y), ladj, atol=tol, rtol=tol)
        torch.testing.assert_close(t.inv(y), x, atol=tol, rtol=tol)
        assert t.inv.inv is t

    def test_log_determinant_is_that_of_the_jacobian(self, name: str) -> None:
        torch.set_default_dtype(torch.float64)
        try:
            t = from_zuko(ZUKO_FLOWS[name]())
            x = 0.5 * torch.randn(D)
            jacobian = torch.autograd.functional.jacobian(t._call, x)
            expected = torch.linalg.slogdet(jacobian)[1]
            tol = max(tolerance(torch.float64, name), 1e-6)
            torch.testing.assert_close(t.call_and_ladj(x)[1], expected, atol=tol, rtol=tol)
        finally:
            torch.set_default_dtype(torch.float32)

    def test_parameters_register_and_train(self, name: str) -> None:
        pyro.clear_param_store()
        flow = ZUKO_FLOWS[name]()
        t = Compose([from_zuko(flow), residual(D, [8], fast="density", logdet=Exact())])
        data = torch.randn(100, D) * 0.5 + 1

        def model() -> None:
            pyro.module("flow", t)
            with pyro.plate("data", len(data)):
                pyro.sample("x", dist.TransformedDistribution(normal(), [t]), obs=data)

        svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 3e-2}), Trace_ELBO())
        losses = [svi.step() for _ in range(6)]
        assert losses[-1] < losses[0] - 10
        stored = {id(p.unconstrained()) for p in pyro.get_param_store().values()}
        assert {id(p) for p in flow.transform.parameters()} <= stored

    def test_copies_and_pickles_after_use(self, name: str) -> None:
        t = from_zuko(ZUKO_FLOWS[name]())
        x = 0.5 * torch.randn(7, D)
        y = t(x)
        for twin in (copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
            torch.testing.assert_close(twin(x), y)


class TestConditionalFromZuko:
    @pytest.fixture
    def flow(self) -> zuko.lazy.Flow:
        return zuko.flows.NSF(D, C, transforms=1, hidden_features=(8,))

    def test_the_distribution_is_the_same(self, flow: zuko.lazy.Flow) -> None:
        t = from_zuko(flow, context_dim=C)
        c, x = torch.randn(7, C), torch.randn(7, D)
        density = dist.ConditionalTransformedDistribution(normal(), [t]).condition(c)
        torch.testing.assert_close(density.log_prob(x), flow(c).log_prob(x))
        assert {id(p) for p in t.parameters()} == {id(p) for p in flow.transform.parameters()}

    @pytest.mark.parametrize(
        ("context", "points", "batch"),
        [((C,), (D,), ()), ((7, C), (D,), (7,)), ((7, C), (6, 1, D), (6, 7))],
    )
    def test_batches_broadcast(
        self,
        flow: zuko.lazy.Flow,
        context: tuple[int, ...],
        points: tuple[int, ...],
        batch: tuple[int, ...],
    ) -> None:
        t = from_zuko(flow, context_dim=C).condition(torch.randn(context))
        x = torch.randn(points)
        y, ladj = t.call_and_ladj(x)
        assert y.shape == (*batch, D) == tuple(t.forward_shape(x.shape))
        assert ladj.shape == batch
        torch.testing.assert_close(t.inv(y), x.expand(y.shape), atol=1e-4, rtol=1e-4)
        assert tuple(t.inverse_shape(x.shape)) == (*batch, D)

    def test_the_batch_of_the_context_becomes_the_distributions(
        self, flow: zuko.lazy.Flow
    ) -> None:
        t = from_zuko(flow, context_dim=C).condition(torch.randn(7, C))
        density = dist.TransformedDistribution(normal(), [t])
        assert density.batch_shape == (7,)
        assert density.rsample().shape == (7, D)

    def test_inverse(self, flow: zuko.lazy.Flow) -> None:
        t = from_zuko(flow, context_dim=C)
        c, x = torch.randn(7, C), torch.randn(7, D)
        assert t.inv.inv is t
        torch.testing.assert_close(t.inv.condition(c)(x), t.condition(c).inv(x))

    def test_the_cache_goes_with_the_context(self, flow: zuko.lazy.Flow) -> None:
        c = torch.randn(7, C)
        t = from_zuko(flow, context_dim=C).condition(c)
        x = torch.randn(7, D)
        before = t(x)
        c.add_(1)
        assert not torch.allclose(t(x), before)

    def test_a_context_of_another_width_is_refused(self, flow: zuko.lazy.Flow) -> None:
        with pytest.raises(ValueError, match=r"context: expected shape \(\*batch, 2\)"):
            from_zuko(flow, context_dim=C).condition(torch.randn(7, C + 1))


@pytest.mark.parametrize("other", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["nsf", "cnf"])
def test_numbers_of_another_type_are_named(name: str, other: torch.dtype) -> None:
    t = from_zuko(ZUKO_FLOWS[name]())
    x = torch.randn(7, D, dtype=other)
    for use, argument in (
        (t, "x"),
        (t._call, "x"),
        (t.call_and_ladj, "x"),
        (t.inv, "y"),
        (t._inverse, "y"),
        (t.inverse_and_ladj, "y"),
    ):
        with pytest.raises(ValueError, match=rf"^{argument}: expected torch.float32, .* {other}"):
            use(x)
    conditional = from_zuko(zuko.flows.NSF(D, C, hidden_features=(8,)), context_dim=C)
    with pytest.raises(ValueError, match=rf"^context: expected torch.float32, .* got {other}"):
        conditional.condition(torch.randn(7, C, dtype=other))


def test_from_zuko_refuses_a_plain_transform() -> None:
    with pytest.raises(ValueError, match="lazy: expected a zuko Flow"):
        from_zuko(zuko.transforms.ExpTransform())


def test_lazy_transforms_of_single_entries() -> None:
    t = from_zuko(zuko.lazy.UnconditionalTransform(zuko.transforms.ExpTransform))
    x = torch.rand(7, D)
    assert t.domain.event_dim == 0
    torch.testing.assert_close(t(x), x.log())
    torch.testing.assert_close(t.log_abs_det_jacobian(x, t(x)), -x.log())


def test_compositions_of_both_keep_nothing_of_pyros_transforms() -> None:
    """zuko gives every transform a ``call_and_ladj`` that leaves the pair in Pyro's cache."""
    spline = T.spline(D)
    t = Compose([spline, residual(D, [8])])
    t.call_and_ladj(torch.randn(7, D))
    assert spline._cached_x_y == (None, None)
    Inverse(spline).inverse_and_ladj(torch.randn(7, D))
    assert spline._cached_x_y == (None, None)
    copy.deepcopy(t)


def test_importing_the_adapter_keeps_the_validation_of_arguments() -> None:
    """And without zuko its error names the extra."""
    code = """
import sys
import pyro
from torch.distributions import Distribution

sys.modules["zuko"] = None
try:
    import pyro_resflow.interop.zuko
except ImportError as error:
    print(error)
del sys.modules["zuko"]

for setting in (False, True):
    Distribution.set_default_validate_args(setting)
    import pyro_resflow.interop.zuko
    print(Distribution._validate_args is setting, "zuko.flows" in sys.modules)
    for name in [name for name in sys.modules if "zuko" in name]:
        del sys.modules[name]
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "pip install 'pyro-resflow[zuko]'" in run.stdout
    assert run.stdout.splitlines()[1:] == ["True True", "True True"]
