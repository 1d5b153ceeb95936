"""Iterate over the submodules of a module in linear time."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def modules_inside(module: nn.Module) -> list[nn.Module]:
    """The module and all modules inside it, each once, in the order of ``module.modules()``.

    torch's iterators pass each module up through every enclosing level, which takes quadratic time
    for nested modules. Every evaluation of a transform needs this list, so linear time matters.
    """
    found: dict[int, nn.Module] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in found:
            found[id(each)] = each
            waiting.extend(reversed(each._modules.values()))
    return list(found.values())


def first_parameter(module: nn.Module) -> nn.Parameter | None:
    """The first of ``module.parameters()``, or ``None`` if there is none.

    torch's iterator passes a parameter up through every enclosing level, which is slow for deeply
    nested modules.
    """
    seen: set[int] = set()
    waiting: list[nn.Module | None] = [module]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        for parameter in each._parameters.values():
            if parameter is not None:
                return parameter
        waiting.extend(reversed(each._modules.values()))
    return None


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The modules' own parameters and buffers, without those of their submodules.

    A module with an attribute ``buffers_follow_parameters`` computes its buffers from its
    parameters; they are left out.
    """
    found: list[Tensor | None] = []
    for each in modules:
        found.extend(each._parameters.values())
        if each._buffers and not getattr(each, "buffers_follow_parameters", False):
            found.extend(each._buffers.values())
    return [tensor for tensor in found if tensor is not None]
