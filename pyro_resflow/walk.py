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
    """The modules' own parameters and buffers, without those of their submodules."""
    return [
        tensor
        for each in modules
        for tensors in (each._parameters, each._buffers)
        for tensor in tensors.values()
        if tensor is not None
    ]
