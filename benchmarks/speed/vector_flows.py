"""Flows of vectors of several libraries, with about the same number of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions.transforms as T
import torch
from torch import Tensor, nn

from benchmarks.operations import (
    Density,
    Size,
    Step,
    density_step,
    plain_blocks,
    plain_step,
    vector_flow,
)

from .contenders import PLAIN, REDUCED, NormflowsModel
from .workloads import Workload

TRANSFORMS = 3
"""Transforms of each flow of zuko and Pyro: zuko's default. More of them take more operations."""


@dataclass(frozen=True)
class VectorContender:
    """A library's flow of vectors.

    Args:
        name: name in the tables.
        build: builds the flow for a size.
        caveat: the number that it computes in training; empty for a log-density.
        training: returns a training step: loss, backward pass, Adam, the update of its norms.
    """

    name: str
    build: Callable[[Size], Any]
    caveat: str = ""
    training: Callable[[Size, Any], Step] = density_step


class PyroFlow(Density):
    """A flow of Pyro's transforms, with the order of the entries reversed between them.

    Args:
        size: the size, and the direction that takes one pass.
        transforms: transforms whose forward direction takes one pass.
    """

    def __init__(self, size: Size, transforms: list[nn.Module]) -> None:
        reversal = T.Permute(torch.arange(size.dim).flip(0))
        parts = [transforms[0]]
        for transform in transforms[1:]:
            parts += [reversal, transform]
        if size.fast == "density":
            parts = [part.inv for part in reversed(parts)]
        super().__init__(size.dim, parts)
        self.trained = nn.ModuleList(transforms)  # an inverse is no module

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x.detach())  # a new tensor: Pyro finds cached passes by identity


class ZukoFlow(Density):
    """A flow of zuko.

    Args:
        size: the size, and the direction that takes one pass.
        flow: a flow whose density takes one pass.
    """

    def __init__(self, size: Size, flow: nn.Module) -> None:
        super().__init__(size.dim, [])
        import zuko

        transform = flow.transform if size.fast == "density" else flow.transform.inv
        self.flow = zuko.flows.Flow(transform, flow.base)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow().log_prob(x)

    def sample(self, number: int) -> Tensor:
        return self.flow().sample((number,))

    def rsample_and_log_prob(self, number: int) -> tuple[Tensor, Tensor]:
        return self.flow().rsample_and_log_prob((number,))


class NormflowsFlow(Density):
    """Residual blocks of normflows, each followed by an ActNorm, as in our flows.

    Args:
        size: the size, and the direction that takes one pass.
    """

    def __init__(self, size: Size) -> None:
        super().__init__(size.dim, [])
        import normflows as nf

        is_density = size.fast == "density"
        workload = Workload("", (size.dim,), size.hidden, size.blocks, size.batch)
        residual = NormflowsModel(workload, {**REDUCED.options, "reverse": is_density})
        flows = [nf.flows.ActNorm(size.dim)] if is_density else []
        for block in residual.flow.flows:
            flows += [block, nf.flows.ActNorm(size.dim)]
        for flow in flows:
            if not is_density and isinstance(flow, nf.flows.ActNorm):
                flow.data_dep_init_done.fill_(1.0)  # starts as the identity, as ours do
        self.flow = nf.NormalizingFlow(residual.flow.q0, flows[::-1] if is_density else flows)
        self.maintenance = residual.maintenance

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x.detach())  # it sets requires_grad of its input

    def sample(self, number: int) -> Tensor:
        return self.flow.sample(number)[0]

    def rsample_and_log_prob(self, number: int) -> tuple[Tensor, Tensor]:
        return self.flow.sample(number)

    def maintain(self) -> None:
        self.maintenance(self.flow, None)


def parameters_of(module: nn.Module) -> int:
    """The number of trained parameters."""
    return sum(p.numel() for p in module.parameters())


def of_about_equal_size(build: Callable[[Size, int], Density], size: Size) -> Density:
    """Build a flow of the width at which it comes closest to the parameters of our flow.

    Args:
        build: builds a flow from a size and the width of its hidden layers.
        size: the size of our flow.
    """
    wanted = parameters_of(vector_flow(size))
    below, above = 1, 2
    while parameters_of(build(size, above)) <= wanted:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        if parameters_of(build(size, middle)) <= wanted:
            below = middle
        else:
            above = middle
    pair = build(size, below), build(size, above)
    return min(pair, key=lambda flow: abs(parameters_of(flow) - wanted))


def zuko_flow(name: str) -> Callable[[Size], Density]:
    """Return a function that builds a flow of zuko, by the name of its class."""

    def of_width(size: Size, width: int) -> Density:
        import pyro_resflow.interop.zuko  # noqa: F401, I001  # keeps the validation of arguments
        import zuko

        kind = getattr(zuko.flows, name)
        return ZukoFlow(
            size, kind(size.dim, transforms=TRANSFORMS, hidden_features=(width, width))
        )

    return lambda size: of_about_equal_size(of_width, size)


def affine_autoregressive(size: Size, width: int) -> Density:
    """Pyro's affine autoregressive transforms; their networks are at least ``dim`` wide."""
    widths = [max(width, size.dim)]
    return PyroFlow(size, [T.affine_autoregressive(size.dim, widths) for _ in range(TRANSFORMS)])


def spline_coupling(size: Size, width: int) -> Density:
    """Pyro's spline couplings."""
    widths = [width, width]
    return PyroFlow(
        size, [T.spline_coupling(size.dim, hidden_dims=widths) for _ in range(TRANSFORMS)]
    )


OURS = VectorContender("pyro-resflow", vector_flow)
PLAIN_VECTORS = VectorContender(PLAIN.name, plain_blocks, PLAIN.caveat, plain_step)
NORMFLOWS = VectorContender(REDUCED.name, NormflowsFlow, REDUCED.caveat)
NSF = VectorContender("zuko, NSF", zuko_flow("NSF"))
MAF = VectorContender("zuko, MAF", zuko_flow("MAF"))
AFFINE = VectorContender(
    "Pyro, affine autoregressive", lambda size: of_about_equal_size(affine_autoregressive, size)
)
SPLINE = VectorContender(
    "Pyro, spline coupling", lambda size: of_about_equal_size(spline_coupling, size)
)

VECTOR_CONTENDERS = (OURS, PLAIN_VECTORS, NORMFLOWS, NSF, MAF, AFFINE, SPLINE)
