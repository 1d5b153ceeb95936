"""Dtypes, devices and sharing of tensors are kept."""

from __future__ import annotations

from pathlib import Path

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch

from pyro_resflow import residual, residual_flow
from pyro_resflow.checkpoints import TensorMismatchError, load, save, structure
from pyro_resflow.logdet import Krylov
from pyro_resflow.nn import InducedNorm, LipschitzLayer, LipschitzMLP
from pyro_resflow.transforms import ActNorm, Compose, Residual
from tests.checkpoints.roundtrips import again, check_same_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_kept(dtype: torch.dtype, path: Path) -> None:
    flow = residual_flow(2, 2, [8]).to(dtype)
    assert {p.dtype for p in again(flow, path).parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_is_the_one_asked_for(dtype: torch.dtype, path: Path) -> None:
    save(residual_flow(2, 2, [8]), path)
    loaded = load(path, dtype=dtype)
    floating = {t.dtype for t in loaded.state_dict().values() if t.is_floating_point()}
    assert floating == {dtype}
    assert bool(loaded.parts[1].initialized)


def test_the_default_type_has_no_part_in_it(path: Path) -> None:
    save(residual_flow(2, 2, [8]), path)
    torch.set_default_dtype(torch.float64)
    try:
        assert {p.dtype for p in load(path).parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_tensors_of_several_types(path: Path) -> None:
    flow = Compose([residual(2, [8]), residual(2, [8])])
    flow.parts[1].double()
    check_same_state(again(flow, path), flow)


def test_tensors_among_the_arguments(path: Path) -> None:
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64)
    flow = Compose(
        [
            torch.distributions.AffineTransform(torch.ones(2), scale),
            pyro_transforms.Permute(torch.tensor([1, 0])),
            torch.distributions.AffineTransform(0.0, scale),
        ]
    )
    loaded = again(flow, path)
    assert loaded.parts[0].scale is loaded.parts[2].scale
    assert loaded.parts[0].scale.dtype == torch.float64
    assert torch.equal(loaded(torch.ones(2)), flow(torch.ones(2)))
    single = load(path, dtype=torch.float32)
    assert single.parts[0].scale.dtype == torch.float32
    assert single.parts[1].permutation.dtype == torch.int64


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
def test_devices(device: str, path: Path) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    flow = Compose([residual(2, [8]), pyro_transforms.Permute(torch.tensor([1, 0]))])
    save(flow, path)
    loaded = load(path, device=device)
    assert {t.device.type for t in loaded.state_dict().values()} == {device}
    x = torch.randn(4, 2)
    y = loaded._call(x.to(device))
    assert y.device.type == device
    if device != "meta":
        torch.testing.assert_close(y.cpu(), flow._call(x))
        check_same_state(again(loaded, path, device="cpu"), flow)


def test_the_default_device(path: Path) -> None:
    save(residual(2, [8]), path)
    with torch.device("meta"):
        assert all(p.is_meta for p in load(path).parameters())
        assert not any(p.is_meta for p in load(path, device="cpu").parameters())


def test_parameters_that_are_shared_come_back_shared(path: Path) -> None:
    block = residual(2, [8], norm=InducedNorm.chain(2))
    flow = Compose([block, ActNorm(2, initialized=True), block])
    loaded = again(flow, path)
    assert loaded.parts[0] is loaded.parts[2]
    norms = [layer.norm for layer in loaded.parts[0].net if isinstance(layer, LipschitzLayer)]
    assert norms[0].codomain_logit is norms[1].domain_logit
    assert norms[1].codomain_logit is norms[0].domain_logit
    assert len(list(loaded.parameters())) == len(list(flow.parameters()))
    x = torch.randn(4, 2)
    assert torch.equal(loaded(x), flow(x))
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    assert not torch.equal(loaded(x), flow(x))


def test_a_network_in_two_blocks(path: Path) -> None:
    net = LipschitzMLP(2, [8])
    loaded = again(Compose([Residual(net), Residual(net, logdet=Krylov())]), path)
    assert loaded.parts[0].net is loaded.parts[1].net


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("initialized", [True, False])
def test_a_flag_that_older_releases_wrote_as_a_truth_value_is_read(
    dtype: torch.dtype, initialized: bool, path: Path
) -> None:
    flow = Compose([ActNorm(3)]).to(dtype)
    flow.parts[0].initialized = torch.tensor(initialized)
    save(flow, path)
    assert b'"0.initialized":{"dtype":"BOOL"' in path.read_bytes()
    flag = load(path).parts[0].initialized
    assert flag.dtype is dtype
    assert bool(flag) is initialized


def test_no_other_truth_value_is_taken_for_a_number() -> None:
    flow = Compose([ActNorm(3)])
    tensors = {**flow.state_dict(), "0.shift": torch.ones(3, dtype=torch.bool)}
    with pytest.raises(TensorMismatchError, match=r"'0\.shift' has dtype torch\.bool"):
        structure.load_tensors(flow, tensors)
