"""A limit on the memory that the constructors of a flow may allocate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .errors import LimitError

OPERATION = 1024
"""Bytes charged for each operation on top of its allocation, so that endless loops are stopped."""


class AllocationBudget(TorchDispatchMode):
    """Limit the bytes that tensor operations inside a ``with`` statement may allocate.

    The size of each result is computed on the meta device, before the operation allocates it.

    Args:
        limit: the number of bytes of all tensors created, temporaries included.

    Raises:
        LimitError: from the operation that would exceed the limit.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.left = limit

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        expected = _expected(func, args, kwargs or {})
        self._spend(OPERATION + (0 if expected is None else _bytes(expected)))
        result = func(*args, **(kwargs or {}))
        if expected is None:
            self._spend(_bytes(result))
        return result

    def _spend(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise LimitError(
                f"building the flow described needs more than {self.limit:,} bytes, too many "
                "for a file of this size; limits: memory and growth."
            )


def _expected(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The results of an operation as meta tensors; ``None`` if their shape depends on values."""
    if all(each.alias_info is not None for each in func._schema.returns):
        return ()  # views and in-place operations, which allocate nothing
    given = {name: value for name, value in kwargs.items() if name != "generator"}
    if any(each.name == "device" for each in func._schema.arguments):
        given |= {"device": torch.device("meta")}
    given.pop("pin_memory", None)
    args, given = tree_map_only(Tensor, _without_values, (args, given))
    try:
        return func(*args, **given)
    except Exception:  # the operation itself raises the clearer error
        return None


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=torch.device("meta")
    )


def _bytes(results: Any) -> int:
    tensors = (each for each in tree_leaves(results) if isinstance(each, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
