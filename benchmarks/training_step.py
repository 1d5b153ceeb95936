"""One training step of an image flow, as published."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ImageFlow
from pyro_resflow.transforms import UniformDequantization


class TrainingStep:
    """A flow with its optimizer and weight average; a call takes one step on a batch.

    The step is the published one: dequantization noise, bits/dim, backward pass, gradients clipped
    at norm 1, Adam, exponential moving average of the weights.

    Args:
        flow: on any device, the meta device included.
        bins: grey levels of the images.
    """

    def __init__(self, flow: ImageFlow, bins: int = 256) -> None:
        self.flow = flow
        flow_dist = flow.distribution()
        flow_dist._validate_args = False  # meta tensors have no values to validate
        self.distribution = Dequantized(
            flow_dist, UniformDequantization(bins), bins, validate_args=False
        )
        # Adam chooses foreach by itself on an accelerator; it needs some more memory
        self.optimizer = torch.optim.Adam(
            flow.parameters(), lr=1e-3, betas=(0.9, 0.99), foreach=True
        )
        self.average = AveragedModel(flow, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def __call__(self, images: Tensor) -> None:
        """Take one step on integer images of shape ``(N, C, H, W)``."""
        self.optimizer.zero_grad()
        self.distribution.bits_per_dim(images).mean().backward()
        clip_grad_norm_(self.flow.parameters(), 1.0)
        self.optimizer.step()
        # Under a dispatch mode, torch's foreach operations do not increment versions, and meta
        # tensors have no values that would show the norms that their weights have changed.
        for parameter in self.flow.parameters():
            increment_version(parameter)
        self.average.update_parameters(self.flow)

    def images(self, number: int) -> Tensor:
        """Random images of one byte a pixel, on the flow's device."""
        device = next(self.flow.parameters()).device
        shape = (number, *self.flow.event_shape)
        return torch.randint(self.distribution.bins, shape, dtype=torch.uint8, device=device)

    def state_bytes(self) -> int:
        """Bytes kept between steps: weights, buffers, their averages, Adam's moments."""
        moments = (value for state in self.optimizer.state.values() for value in state.values())
        modules = (self.flow, self.average)
        weights = (parameter for module in modules for parameter in module.parameters())
        buffers = (buffer for module in modules for buffer in module.buffers())
        return sum(tensor.nbytes for tensor in chain(weights, buffers, moments))
