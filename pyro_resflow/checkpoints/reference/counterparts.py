r"""Map the modules and tensors of the reference implementation to this package's.

Its tensors have other names, and two modules use another parametrization: its ActNorm is
:math:`(x + b)\,e^s`, and its layers' norm is :math:`u^T W v` with unit vectors u and v, while ours
is the product of the lengths of u and v.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...flows import ResidualFlow
from ...nn import LipschitzConv2d, LipschitzLayer, LipSwish
from ...transforms import ActNorm, Residual
from .architecture import Architecture

Shapes = dict[str, tuple[int, ...] | None]
"""Shapes by name; ``None`` allows any shape."""


class Counterpart:
    """A module of our flow and the corresponding module of the reference implementation.

    Args:
        name: the name of the reference's module.
        path: the name of our module.
        module: our module.
    """

    def __init__(self, name: str, path: str, module: Any) -> None:
        self.name = name
        self.path = path
        self.module = module

    def parameters(self) -> Shapes:
        """The shapes of the reference module's parameters."""
        return {}

    def buffers(self) -> Shapes:
        """The shapes of the reference module's buffers."""
        return {}

    def converted(self, there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our module's parameters and buffers, from the reference's in double precision."""
        return {}


class BlockCounterpart(Counterpart):
    """A residual block: its roulette's parameters, never learned, and its last batch's moments."""

    def parameters(self) -> Shapes:
        return {"geom_p": (), "lamb": ()}

    def buffers(self) -> Shapes:
        return {"last_n_samples": None, "last_firmom": (1,), "last_secmom": (1,)}


class LayerCounterpart(Counterpart):
    """A linear layer or a convolution, with the vectors of its power iteration."""

    def parameters(self) -> Shapes:
        weight = tuple(self.module.weight.shape)
        return {"weight": weight, "bias": weight[:1]}

    def buffers(self) -> Shapes:
        # a convolution creates these at the first batch, for images of that size
        of_first_batch: Shapes = {"initialized": (), "spatial_dims": (2,)}
        is_convolution = isinstance(self.module, LipschitzConv2d)
        vectors = {"u": tuple(self.module.u.shape), "v": tuple(self.module.v.shape)}
        return {**vectors, "scale": (), **(of_first_batch if is_convolution else {})}

    def converted(self, there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        u, v = there["u"], there["v"]
        operator = self.module.measured_operator(there["weight"])
        applied = operator.apply(v.view(1, *operator.domain)).flatten()
        lengths = torch.linalg.vector_norm(u) * torch.linalg.vector_norm(v)
        scaled = u * (torch.dot(u, applied).clamp_min(0) / lengths)
        return {"weight": there["weight"], "bias": there["bias"], "u": scaled, "v": v}


class SwishCounterpart(Counterpart):
    """A LipSwish."""

    def parameters(self) -> Shapes:
        return {"beta": (1,)}

    def converted(self, there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"raw_beta": there["beta"].squeeze(0)}


class ActNormCounterpart(Counterpart):
    """An ActNorm."""

    def parameters(self) -> Shapes:
        features = (self.module.num_features,)
        return {"weight": features, "bias": features}

    def buffers(self) -> Shapes:
        return {"initialized": ()}

    def converted(self, there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shift = there["bias"] * there["weight"].exp()
        return {"log_scale": there["weight"], "shift": shift, "initialized": torch.tensor(True)}


class NoActNorm(Counterpart):
    """An ActNorm that the reference's flow lacks: the identity."""

    def converted(self, there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        zeros = torch.zeros(self.module.num_features)
        return {"log_scale": zeros, "shift": zeros, "initialized": torch.tensor(True)}


def counterparts(flow: ResidualFlow, built: Architecture) -> list[Counterpart]:
    """The counterparts of all modules of a flow that have tensors, here or in the reference."""
    modules = dict(flow.named_modules())
    blocks = [path for path, module in modules.items() if isinstance(module, Residual)]
    norms = [path for path, module in modules.items() if isinstance(module, ActNorm)]
    block_names, norm_names = _names(built)
    found: list[Counterpart] = []
    for name, path in zip(norm_names, norms, strict=True):
        kind = NoActNorm if name is None else ActNormCounterpart
        found.append(kind(name or "", path, modules[path]))
    for (name, network), path in zip(block_names, blocks, strict=True):
        found.append(BlockCounterpart(name, path, modules[path]))
        for position, layer in enumerate(modules[path].net.children()):
            if isinstance(layer, LipschitzLayer | LipSwish):
                of_layer = SwishCounterpart if isinstance(layer, LipSwish) else LayerCounterpart
                names = f"{name}.{network}.{position}", f"{path}.net.{position}"
                found.append(of_layer(*names, layer))
    return found


def _names(built: Architecture) -> tuple[list[tuple[str, str]], list[str | None]]:
    """The reference's names of the blocks with their networks, and of the ActNorms, in order."""
    blocks: list[tuple[str, str]] = []
    norms: list[str | None] = []
    for scale, number in enumerate(built.blocks):
        is_first, is_last = scale == 0, scale == len(built.blocks) - 1
        # the logit takes the first position
        places = (f"transforms.{scale}.chain.{i}" for i in itertools.count(int(is_first)))
        if is_first:
            norms.append(next(places) if built.actnorm else None)
        ends = built.end_blocks if is_last else 0
        for network, inside, repeats in (("nnet", "", number), ("nnet.nnet", ".fc_module", ends)):
            for _ in range(repeats):
                blocks.append((next(places), network))
                norms.append(f"{next(places)}{inside}" if built.actnorm else None)
    return blocks, norms
