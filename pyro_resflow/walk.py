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
    waiting = [module]
    while waiting:
        each = waiting.pop()
        if id(each) not in found:
            found[id(each)] = each
            if each._modules:  # most have none
                children = [child for child in each._modules.values() if child is not None]
                waiting.extend(reversed(children))
    return list(found.values())


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters and the buffers that modules hold themselves."""
    return [
        tensor
        for each in modules
        for tensors in (each._parameters, each._buffers)
        for tensor in tensors.values()
        if tensor is not None
    ]
