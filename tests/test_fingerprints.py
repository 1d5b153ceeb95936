"""Every change of a value is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_resflow.fingerprints import REMEMBERED_WHOLE, Fingerprint, which_fit

SHAPES = [(), (3,), (5, 4), (300, 200), (64, 16, 3, 3), (2, 70_000)]


def one_entry(t: Tensor) -> Tensor:
    changed = t.clone()
    changed.view(-1)[-1] += 1e-3
    return changed


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one entry": one_entry,
    "other signs": lambda t: -t,
    "averaged": lambda t: 0.999 * t + 1e-3 * torch.randn_like(t),
    "replaced": torch.randn_like,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_writes_through_data_are_noticed(
    shape: tuple[int, ...], change: str, dtype: torch.dtype
) -> None:
    tensors = [torch.ones(3), torch.randn(shape, dtype=dtype)]
    seen = Fingerprint(tensors)
    assert seen.fits(tensors)
    before = tensors[1].clone()
    tensors[1].data.copy_(CHANGES[change](before))
    assert not seen.fits(tensors)
    tensors[1].data.copy_(before)
    assert seen.fits(tensors)


@pytest.mark.parametrize("change", ["swapped rows", "swapped columns"])
def test_places_count(change: str) -> None:
    tensor = torch.randn(300, 200)
    seen = Fingerprint([tensor])
    tensor.data.copy_(tensor.flip(0 if change == "swapped rows" else 1))
    assert not seen.fits([tensor])


@pytest.mark.parametrize("size", [8, REMEMBERED_WHOLE + 1])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16])
def test_other_types(dtype: torch.dtype, size: int) -> None:
    tensor = torch.randint(0, 2, (size, 2)).to(dtype)
    seen = Fingerprint([tensor])
    assert seen.fits([tensor])
    tensor.data[0, 0] = 1 - int(tensor[0, 0])
    assert not seen.fits([tensor])


def test_another_tensor_and_a_write_of_the_same_values_are_other_traces() -> None:
    tensor = torch.randn(4)
    seen = Fingerprint([tensor])
    assert not seen.fits([tensor.clone()])
    tensor.mul_(1)
    assert not seen.fits([tensor])


def test_memory_that_comes_back_is_noticed() -> None:
    layer = torch.nn.Linear(8, 8, bias=False)
    for _ in range(50):
        seen = Fingerprint([layer.weight])
        for _ in range(2):
            layer.weight = torch.nn.Parameter(torch.randn(8, 8))
        assert not seen.fits([layer.weight])


def test_a_change_is_noticed_under_autocast_and_with_lowered_products() -> None:
    tensor = torch.randn(300, 200)
    seen = Fingerprint([tensor])
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert seen.fits([tensor])
            tensor.data[0, 0] += 1e-3
            assert not seen.fits([tensor])
    finally:
        torch.set_float32_matmul_precision("highest")


def test_large_tensors_are_remembered_in_short() -> None:
    seen = Fingerprint([torch.randn(100, 10_000), torch.randn(50)])
    assert [len(part.bits) for part in seen._parts.values()] == [150]


def test_several_are_taken_and_compared_together() -> None:
    groups = [
        [torch.randn(3), torch.ones(2, dtype=torch.bool)],
        [torch.empty(0)],
        [],
        [torch.randn(300, 200), torch.randint(2**40, (3,)), torch.randint(9, (70, 70))],
        [torch.randn(4)],
    ]
    several = Fingerprint.of_each(groups)
    assert which_fit(several, groups) == [True] * 5
    groups[0][1].data[0] = False
    assert which_fit(several, groups) == [False, True, True, True, True]
    groups[0][1].data[0] = True
    groups[3][1].data.add_(1)  # beyond what float32 tells apart
    groups[4][0].add_(1)
    assert which_fit(several, groups) == [True, True, True, False, False]
    assert which_fit([], []) == []


def test_nan_is_a_value() -> None:
    tensors = [torch.full((3,), torch.nan), torch.full((300, 200), torch.nan)]
    seen = Fingerprint(tensors)
    assert seen.fits(tensors)
    tensors[0].data.zero_()
    assert not seen.fits(tensors)


def test_tensors_without_values() -> None:
    first, second = (torch.empty(3, device="meta") for _ in range(2))
    seen = Fingerprint([first])
    assert seen.fits([first])
    assert not seen.fits([second])
    with torch.inference_mode():
        tensor = torch.randn(3)
        seen = Fingerprint([tensor])
        assert seen.fits([tensor])
        tensor.add_(1)
        assert not seen.fits([tensor])
