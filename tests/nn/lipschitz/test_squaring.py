from __future__ import annotations

import pytest
import torch

from pyro_resflow.nn.lipschitz.squaring import SQUARED_SIDE, GramPower


@pytest.mark.parametrize("side", [1, 2, 10, SQUARED_SIDE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cycle_gives_the_largest_eigenvector(side: int, dtype: torch.dtype) -> None:
    basis, _ = torch.linalg.qr(torch.randn(3, side, side, dtype=torch.float64))
    eigenvalues = torch.linspace(1, 0.5, side, dtype=torch.float64)
    matrices = ((basis * eigenvalues) @ basis.mT).to(dtype)
    start = torch.randn(3, side, dtype=dtype)
    powers = GramPower(matrices)
    found, values, _ = powers.cycle(powers.cycle(start)[0])
    aligned = (found * basis[:, :, 0].to(dtype)).sum(1).abs()
    within = 1e-5 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(aligned, torch.ones_like(aligned), rtol=0, atol=within)
    torch.testing.assert_close(values * matrices.flatten(1).amax(1), torch.ones_like(values))


def test_a_cycle_is_two_products_with_the_256th_power() -> None:
    basis, _ = torch.linalg.qr(torch.randn(1, 6, 6, dtype=torch.float64))
    eigenvalues = torch.tensor([1.0, 0.999, 0.998, 0.9, 0.5, 0.1], dtype=torch.float64)
    matrices = (basis * eigenvalues) @ basis.mT
    start = torch.randn(1, 6, dtype=torch.float64)
    found, values, rise = GramPower(matrices).cycle(start)
    by_power = [
        (basis * eigenvalues**power @ basis.mT @ start[..., None])[..., 0] for power in (256, 512)
    ]
    quotients = [
        (v * (matrices @ v[..., None])[..., 0]).sum(1) / v.square().sum(1) for v in by_power
    ]
    torch.testing.assert_close(found, by_power[1] / by_power[1].norm(dim=1, keepdim=True))
    unit = matrices.flatten(1).amax(1)
    torch.testing.assert_close(values * unit, quotients[1])
    torch.testing.assert_close(rise * unit, quotients[1] - quotients[0])


def test_zero_stays_zero() -> None:
    found, values, rise = GramPower(torch.zeros(2, 5, 5)).cycle(torch.randn(2, 5))
    assert not found.any()
    assert not values.any()
    assert not rise.any()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e36])
def test_powers_neither_over_nor_underflow(scale: float) -> None:
    matrix = torch.randn(SQUARED_SIDE, SQUARED_SIDE, dtype=torch.float64)
    gram = matrix @ matrix.mT
    found, values, _ = GramPower((scale * gram / gram.max()).float()[None]).cycle(
        torch.randn(1, SQUARED_SIDE)
    )
    assert found.isfinite().all()
    truth = torch.linalg.eigvalsh(gram)[-1] / gram.max()
    torch.testing.assert_close(values[0].double(), truth, rtol=1e-4, atol=0)
