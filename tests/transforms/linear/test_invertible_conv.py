"""The invertible 1x1 convolution: its matrix, start, agreement with Pyro's, and precision."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.distributions.transforms import GeneralizedChannelPermute
from torch.nn import functional as F

from pyro_resflow.transforms import InvertibleConv1x1


def test_starts_as_a_rotation() -> None:
    conv = InvertibleConv1x1(12)
    torch.testing.assert_close(conv.matrix() @ conv.matrix().mT, torch.eye(12), atol=1e-5, rtol=0)
    _, ladj = conv.call_and_ladj(torch.randn(5, 12, 8, 8))
    torch.testing.assert_close(ladj, torch.zeros(5), atol=1e-3, rtol=0)


def moved(channels: int) -> InvertibleConv1x1:
    conv = InvertibleConv1x1(channels)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return conv


def test_is_the_convolution_by_its_matrix() -> None:
    conv = moved(5)
    x = torch.randn(7, 5, 3, 4)
    y, ladj = conv.call_and_ladj(x)
    torch.testing.assert_close(y, F.conv2d(x, conv.matrix()[:, :, None, None]))
    expected = 12 * torch.linalg.slogdet(conv.matrix())[1]
    torch.testing.assert_close(ladj, expected.expand(7))
    torch.testing.assert_close(conv.inverse_matrix(), conv.matrix().inverse())


def test_agrees_with_pyros() -> None:
    pyro.set_rng_seed(0)
    ours = InvertibleConv1x1(4)
    pyro.set_rng_seed(0)
    theirs = GeneralizedChannelPermute(4)
    x = torch.randn(7, 4, 3, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_inverse_of_many_channels_is_exact(dtype: torch.dtype, tolerance: float) -> None:
    conv = InvertibleConv1x1(48).to(dtype)
    x = torch.randn(7, 48, 4, 4, dtype=dtype)
    with torch.no_grad():
        assert (conv._inverse(conv._call(x)) - x).abs().max() < tolerance


def test_stays_in_full_precision_under_autocast() -> None:
    conv = InvertibleConv1x1(4)
    x = torch.randn(7, 4, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, conv._call(x))


def test_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, 4, 3, 3\)"):
        InvertibleConv1x1(4)(torch.randn(7, 5, 3, 3))
