"""Networks fitted to digits for a short time, for measurements that depend on contractivity."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_resflow.nn import Chain

from ..logdet_variance import digits
from .contenders import KEEP as TRAINED
from .contenders import OurModel, Ours
from .plan import Plan
from .workloads import Workload


@cache
def images(workload: Workload) -> tuple[Tensor, Tensor]:
    """Training and held-out digits at the workload's size, standardized, with normal noise."""
    train, held_out = (_enlarged(points, workload.event_shape) for points in digits())
    mean, std = train.mean(), train.std()
    return (train - mean) / std, (held_out - mean) / std


def _enlarged(points: Tensor, event_shape: tuple[int, ...]) -> Tensor:
    size = event_shape[1:]
    enlarged = F.interpolate(points.view(-1, 1, 8, 8), size, mode="bilinear")
    return enlarged + 0.3 * torch.randn_like(enlarged)


def held_out(plan: Plan) -> Tensor:
    """A batch of held-out digits for the first image workload."""
    workload = plan.images[0]
    return images(workload)[1][: workload.batch].to(plan.device)


def fitted_networks(plan: Plan) -> list[Chain]:
    """The networks of the first image workload after some training steps."""
    model = _fitted(plan.images[0], plan.fitting_steps, plan.device)
    return [block.net for block in model.blocks]


@cache
def _fitted(workload: Workload, steps: int, device: torch.device) -> OurModel:
    train, _ = images(workload)
    model = Ours(TRAINED.name, TRAINED.logdet).build(workload).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (workload.batch,))].to(device)
        optimizer.zero_grad()
        (-model.log_prob(batch).mean()).backward()
        optimizer.step()
    return model


@torch.no_grad()
def block_inputs(networks: list[Chain], x: Tensor) -> list[Tensor]:
    """The input of each block when the flow is applied to x."""
    inputs = []
    for net in networks:
        inputs.append(x)
        x = x + net(x)
    return inputs


@torch.no_grad()
def largest_singular_value(net: Chain, x: Tensor, steps: int = 30) -> float:
    """The largest singular value of the Jacobian at any of the points, by power iteration."""
    linearization = net.linearize(x)
    v = torch.randn_like(x)[None]
    sizes = torch.zeros(len(x))
    for _ in range(steps):
        v = v / torch.linalg.vector_norm(v.flatten(2), dim=-1)[(...,) + (None,) * (x.dim() - 1)]
        image = linearization.jvp(v)
        sizes = torch.linalg.vector_norm(image.flatten(2), dim=-1)
        v = linearization.vjp(image)
    return float(sizes.max())
