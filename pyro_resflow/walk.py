"""The modules inside a module, at a cost in proportion to their number."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def modules_inside(module: nn.Module) -> list[nn.Module]:
    """The module and all modules inside it, each once, in the order of ``module.modules()``.

    torch's own iterators hand each module up through every level around it, so that a nest costs
    the square of its depth; and every evaluation asks what it depends on.
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
