"""Dequantization noise stays in its bin."""

import pytest
import torch

from pyro_resflow.transforms import UniformDequantization


@pytest.mark.parametrize("bins", [2, 17, 23, 32, 49, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_v_never_leaves_its_bin(bins: int, dtype: torch.dtype) -> None:
    x = torch.arange(bins).reshape(1, 1, bins)
    largest = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    for u in (torch.zeros((), dtype=dtype), largest):
        v = UniformDequantization(bins).condition(x)(u.expand(1, 1, bins))
        assert torch.equal((v * bins).floor().long(), x)
        assert v.max() < 1


def test_noise_is_uniform_in_the_shape_of_the_images() -> None:
    x = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    noise = UniformDequantization(8).noise(x)
    assert noise.batch_shape == (5,)
    assert noise.event_shape == (1, 4, 4)
    u = noise.sample((1000,))
    z = (u.mean() - 0.5) / (u.std() / u.numel() ** 0.5)
    assert z.abs() < 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_half_precision_keep_their_levels(dtype: torch.dtype) -> None:
    x = torch.arange(256).reshape(1, 16, 16).to(dtype)
    dequantization = UniformDequantization(256)
    v = dequantization.condition(x)(dequantization.noise(x).sample())
    assert torch.equal((v * 256).floor(), x.float())


def test_two_bins_at_least() -> None:
    with pytest.raises(ValueError, match="bins"):
        UniformDequantization(1)


def test_a_context_that_is_no_image_is_named() -> None:
    with pytest.raises(ValueError, match=r"context: expected images .* got \(4, 4\)"):
        UniformDequantization(8).condition(torch.zeros(4, 4))
