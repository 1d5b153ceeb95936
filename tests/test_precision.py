"""Full precision is used where it is needed, whatever precision the process allows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch
from torch import Tensor

from pyro_resflow.logdet import Exact, Krylov
from pyro_resflow.nn import LipschitzMLP, SpectralNorm
from pyro_resflow.precision import PRODUCTS, SurroundingPrecision, full_precision, precision
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov
from pyro_resflow.transforms import Residual, TriangularAffine

NEW = hasattr(torch.backends.cudnn, "conv")

OLDER = [
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (
        lambda: torch.backends.cudnn.allow_tf32,
        partial(setattr, torch.backends.cudnn, "allow_tf32"),
    ),
]


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Give every setting its value back."""
    before = [get() for get, _ in OLDER]
    yield
    if NEW:
        torch.backends.fp32_precision = "none"
    for (_, give_back), value in zip(OLDER, before, strict=True):
        give_back(value)


@pytest.fixture
def lowered() -> None:
    """Products of matrices in bfloat16 on the CPU, where it can."""
    torch.set_float32_matmul_precision("medium")


def products() -> str:
    """In what products of matrices are taken."""
    return torch.get_float32_matmul_precision()


class Watched(torch.nn.Module):
    """A contraction that notes the settings that it runs with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(products())
        return 0.2 * torch.tanh(self.linear(x))


@pytest.mark.parametrize("solver", [Anderson, FixedPoint, NewtonKrylov])
@pytest.mark.usefixtures("lowered")
def test_an_inverse_converges_whatever_the_process_allows(solver: type) -> None:
    transform = Residual(LipschitzMLP(64, [128, 128]), solver=solver())
    y = torch.randn(16, 64)
    with torch.no_grad():
        x = transform.inv(y)
        torch.set_float32_matmul_precision("highest")
        assert torch.allclose(x + transform.net(x), y, atol=1e-5)


@pytest.mark.parametrize("solver", [Anderson, FixedPoint, NewtonKrylov])
@pytest.mark.usefixtures("lowered")
def test_a_solve_and_its_gradient_run_in_full_precision(solver: type) -> None:
    net, y = Watched(), torch.randn(5, 3, requires_grad=True)
    x = solver()(net, y)
    before = len(net.seen)
    x.sum().backward()
    assert 0 < before < len(net.seen)
    assert set(net.seen) == {"highest"}
    assert products() == "medium"


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.usefixtures("lowered")
def test_an_estimator_runs_its_network_as_the_process_does(memory: str) -> None:
    net, x = Watched(), torch.randn(5, 3, requires_grad=True)
    Krylov(memory=memory)(net, x)[1].sum().backward()
    assert set(net.seen) == {"medium"}


@pytest.mark.usefixtures("lowered")
def test_exact_runs_its_network_as_the_process_does() -> None:
    net, x = Watched(), torch.randn(5, 3, requires_grad=True)
    Exact()(net, x)[1].sum().backward()
    assert set(net.seen) == {"medium"}


@pytest.mark.usefixtures("lowered")
def test_norms_are_those_of_full_precision() -> None:
    def bound() -> Tensor:
        torch.manual_seed(0)
        return LipschitzMLP(64, [128], norm=SpectralNorm(0.9)).lipschitz_bound()

    lowered = bound()
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(lowered, bound())


@pytest.mark.usefixtures("lowered")
def test_triangular_maps_invert_themselves() -> None:
    transform = TriangularAffine(64)
    with torch.no_grad():
        transform.below_diagonal.normal_(0, 0.05)
        x = torch.randn(32, 64)
        assert torch.allclose(transform.inv(transform(x).clone()), x, atol=1e-5)


def test_a_cached_pass_is_of_the_precision_of_now() -> None:
    transform, x = Residual(LipschitzMLP(64, [128])), torch.randn(32, 64)
    with torch.no_grad():
        first = transform(x)
        assert transform(x) is first
        torch.set_float32_matmul_precision("medium")
        assert transform(x) is not first


@pytest.mark.usefixtures("lowered")
def test_settings_come_back_after_an_error() -> None:
    seen = []

    def failing() -> None:
        with full_precision(torch.zeros(1)):
            seen.append(products())
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert seen == ["highest"]
    assert products() == "medium"


def test_full_precision_leaves_alone_what_is_full() -> None:
    torch.backends.cudnn.allow_tf32 = False
    before = precision(torch.zeros(1))
    with full_precision(torch.zeros(1)):
        assert precision(torch.zeros(1)) == before


def test_no_region_is_opened_where_products_are_in_float32() -> None:
    torch.backends.cudnn.allow_tf32 = True  # which concerns no product on the CPU
    x = torch.zeros(1)
    with full_precision(x), SurroundingPrecision.of(x).in_force():
        assert torch.backends.cudnn.allow_tf32
        assert PRODUCTS.own.count == 0
    torch.set_float32_matmul_precision("high")
    with full_precision(x):
        assert PRODUCTS.own.count == 1
        assert products() == "highest"


@pytest.mark.usefixtures("lowered")
def test_full_precision_outlasts_the_region_of_another_thread() -> None:
    opened, done = Barrier(2), Barrier(2)

    def solve() -> None:
        with PRODUCTS.full():
            opened.wait(10)
            done.wait(10)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(solve)
        opened.wait(10)
        with full_precision(torch.zeros(1)):  # full already, by the other thread's doing
            done.wait(10)
            other.result()
            assert products() == "highest"
    assert products() == "medium"


def test_convolutions_on_cuda_are_among_the_settings() -> None:
    torch.backends.cudnn.allow_tf32 = True
    with PRODUCTS.full():
        assert not torch.backends.cudnn.allow_tf32
        with PRODUCTS.allowed():
            assert torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("lowered")
def test_regions_may_be_nested() -> None:
    with PRODUCTS.full(), PRODUCTS.allowed():
        assert products() == "medium"
        with PRODUCTS.full(), PRODUCTS.allowed():  # the outer one wants it
            assert products() == "highest"
    assert products() == "medium"


@pytest.mark.usefixtures("lowered")
def test_one_thread_does_not_lower_anothers_precision() -> None:
    opened, scored = Barrier(2), Barrier(2)

    def solve() -> str:
        with PRODUCTS.full():
            opened.wait(10)
            scored.wait(10)
            return products()

    before = precision(torch.zeros(1))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(solve)
        opened.wait(10)
        assert precision(torch.zeros(1)) == before  # this thread has asked for nothing
        with PRODUCTS.allowed():  # as in a backward pass
            assert products() == "highest"
        with PRODUCTS.full(), PRODUCTS.allowed():
            assert products() == "highest"
        assert products() == "highest"
        scored.wait(10)
        assert other.result() == "highest"
    assert products() == "medium"


@pytest.mark.skipif(not NEW, reason="torch has one interface")
def test_the_newer_interface_is_heeded_where_the_older_may_not_be_read() -> None:
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    with PRODUCTS.full():
        assert matmul.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.mkldnn.conv.fp32_precision == "ieee"
    assert torch.backends.mkldnn.conv.fp32_precision == "tf32"
    assert matmul.fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"  # which it goes on following
    assert matmul.fp32_precision == "ieee"


def test_meta_tensors_have_no_settings() -> None:
    x = torch.zeros(1, device="meta")
    with full_precision(x), SurroundingPrecision.of(x).in_force():
        assert (x + x).is_meta
