"""What needs full precision has it, whatever the process allows its products."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from pyro_resflow.logdet import Exact, Krylov
from pyro_resflow.nn import LipschitzMLP, SpectralNorm
from pyro_resflow.precision import Ambient, full_precision, products_on
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov
from pyro_resflow.transforms import Residual, TriangularAffine

NEW = hasattr(torch.backends.cudnn, "conv")

KINDS = ("cuda", "cpu")


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Give every setting its value back."""
    before = [(s, s.value) for kind in KINDS for s in products_on(kind).settings]
    yield
    torch.set_float32_matmul_precision("highest")
    for setting, value in before:
        setting.value = value


@pytest.fixture
def lowered() -> None:
    """Products of matrices in bfloat16 on the CPU, where it can."""
    torch.set_float32_matmul_precision("medium")


def products() -> tuple[str, ...]:
    return products_on("cpu").values


class Watched(torch.nn.Module):
    """A contraction that notes the settings that it runs with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.seen: list[tuple[str, ...]] = []

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
    assert not any("bf16" in seen for seen in net.seen)
    assert "bf16" in products()


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.usefixtures("lowered")
def test_an_estimator_runs_its_network_as_the_process_does(memory: str) -> None:
    net, x = Watched(), torch.randn(5, 3, requires_grad=True)
    Krylov(memory=memory)(net, x)[1].sum().backward()
    assert net.seen
    assert all("bf16" in seen for seen in net.seen)


@pytest.mark.usefixtures("lowered")
def test_exact_runs_its_network_as_the_process_does() -> None:
    net, x = Watched(), torch.randn(5, 3, requires_grad=True)
    Exact()(net, x)[1].sum().backward()
    assert net.seen
    assert all("bf16" in seen for seen in net.seen)


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
    before = products()
    seen = []

    def failing() -> None:
        with full_precision(torch.zeros(1)):
            seen.extend(products())
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert seen
    assert "bf16" not in seen
    assert products() == before


def test_full_precision_leaves_alone_what_is_full() -> None:
    before = products()
    with full_precision(torch.zeros(1)):
        assert products() == before


@pytest.mark.parametrize("kind", KINDS)
def test_regions_may_be_nested(kind: str) -> None:
    found = products_on(kind)
    lower(kind)
    allowed = found.values
    with found.full():
        assert set(found.values) == {"ieee"}
        with found.allowed():
            assert found.values == allowed
            with found.full(), found.allowed():  # the outer one wants it
                assert set(found.values) == {"ieee"}
        assert set(found.values) == {"ieee"}
    assert found.values == allowed


def lower(kind: str) -> None:
    for setting in products_on(kind).settings:
        setting.value = "tf32"


def test_one_thread_does_not_lower_anothers_precision() -> None:
    found = products_on("cpu")
    lower("cpu")
    opened, scored = Barrier(2), Barrier(2)

    def solve() -> tuple[str, ...]:
        with found.full():
            opened.wait(10)
            scored.wait(10)
            return found.values

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(solve)
        opened.wait(10)
        with found.allowed():  # as in a backward pass
            assert set(found.values) == {"ieee"}
        with found.full(), found.allowed():
            assert set(found.values) == {"ieee"}
        assert set(found.values) == {"ieee"}
        scored.wait(10)
        assert set(other.result()) == {"ieee"}
    assert set(found.values) == {"tf32"}


@pytest.mark.skipif(not NEW, reason="torch has no settings above others")
def test_what_followed_another_setting_goes_on_following() -> None:
    torch.backends.fp32_precision = "tf32"
    try:
        with products_on("cuda").full():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"


def test_meta_tensors_have_no_settings() -> None:
    x = torch.zeros(1, device="meta")
    with full_precision(x), Ambient.of(x).in_force():
        assert (x + x).is_meta
