"""Layers of images in JAX, with the channels in the last dimension.

All layers take ``(*batch, H, W, C)``. In this layout a 1x1 convolution is a linear layer, and
layers of vectors apply to every pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ... import nn as lipschitz
from ...extras import extra
from ...nn.conditioners.building_blocks import ChannelNorm as TorchChannelNorm
from .layers import Chain, Linear, array, to_jax

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array, lax


class Conv2d(NamedTuple):
    """A zero-padded convolution of unit stride, with a kernel ``(height, width, in, out)``."""

    kernel: Array
    bias: Array | None

    def __call__(self, x: Array) -> Array:
        images = x.reshape(-1, *x.shape[-3:])
        y = lax.conv_general_dilated(
            images,
            self.kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",  # a TPU's default precision is too low to solve for an inverse
        )
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    @property
    def out_features(self) -> int:
        """The number of channels of the output."""
        return self.kernel.shape[-1]


class ChannelNorm(NamedTuple):
    """Layer normalisation over the channels of each pixel, with scale and shift."""

    weight: Array
    bias: Array
    epsilon: Array

    def __call__(self, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / jnp.sqrt(variance + self.epsilon) * self.weight + self.bias


class Affine(NamedTuple):
    """a x + b for each channel: batch normalisation in evaluation mode."""

    scale: Array
    shift: Array

    def __call__(self, x: Array) -> Array:
        return x * self.scale + self.shift


class ReLU(NamedTuple):
    """max(x, 0)."""

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(x)


def convolution(kernel: torch.Tensor, bias: torch.Tensor | None) -> Linear | Conv2d:
    """The layer with a torch kernel of shape ``(out, in, height, width)``."""
    if kernel.shape[2:] == (1, 1):
        return Linear(array(kernel[:, :, 0, 0]), None if bias is None else array(bias))
    return Conv2d(array(kernel.permute(2, 3, 1, 0)), None if bias is None else array(bias))


@to_jax.register
@torch.no_grad()
def _lipschitz_convolution(module: lipschitz.LipschitzConv2d) -> Linear | Conv2d:
    return convolution(module.effective_weight(), module.bias)


@to_jax.register(lipschitz.InitializedConv2d)
@torch.no_grad()
def _initialized_convolution(module: lipschitz.InitializedConv2d) -> Linear | Conv2d:
    if not bool(module.initialized):
        raise ValueError(
            f"module: expected an initialised network, got one whose {type(module).__name__} is "
            "not initialised; call pyro_resflow.transforms.initialize(flow, data) first."
        )
    return convolution(module.kernel(), module.bias)


@to_jax.register
def _plain_convolution(module: nn.Conv2d) -> Linear | Conv2d:
    size = module.kernel_size
    same = module.padding == "same" or tuple(module.padding) == tuple(k // 2 for k in size)
    if (
        not same
        or any(k % 2 == 0 for k in size)
        or {*module.stride, *module.dilation, module.groups} != {1}
        or module.padding_mode != "zeros"
    ):
        raise ValueError(
            "module: expected a convolution with an odd kernel, unit stride and zero padding that "
            f"keeps the image size, got {module}; add your own translation with to_jax.register."
        )
    return convolution(module.weight, module.bias)


@to_jax.register
@torch.no_grad()
def _batch_norm(module: nn.BatchNorm2d) -> Affine:
    check_evaluating(module)
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        raise ValueError(
            "module: expected a BatchNorm2d with running averages, got one without, whose output "
            "depends on the whole batch and which cannot be translated."
        )
    scale = (variance + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight
    shift = -mean * scale
    return Affine(array(scale), array(shift + module.bias if module.affine else shift))


@to_jax.register(nn.ReLU)
def _relu(module: nn.Module) -> ReLU:
    return ReLU()


@to_jax.register(nn.Identity)
def _identity(module: nn.Module) -> Chain:
    return Chain(())


@to_jax.register
def _channel_norm(module: TorchChannelNorm) -> ChannelNorm:
    return ChannelNorm(array(module.weight), array(module.bias), array(module.eps))


@to_jax.register
def _dropout(module: nn.Dropout) -> Chain:
    if module.p:
        check_evaluating(module)
    return Chain(())


def check_evaluating(module: nn.Module) -> None:
    """Raise if a module is in training mode.

    Raises:
        ValueError: naming its type and the remedy.
    """
    if module.training:
        raise ValueError(
            f"module: expected evaluation mode, got a {type(module).__name__} in training mode, "
            "which depends on the batch or on random numbers; call eval() on the flow first."
        )
