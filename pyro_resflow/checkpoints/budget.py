"""How much memory the constructors of a flow may allocate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .errors import LimitError

OPERATION = 1024
"""Bytes that an operation counts as beside what it allocates: none is repeated without end."""


class AllocationBudget(TorchDispatchMode):
    """Operations on tensors inside a ``with`` statement allocate no more than so many bytes.

    What an operation would allocate is found out on the meta device, before it does.

    Args:
        limit: the number of bytes, of all tensors that are made, kept or not.

    Raises:
        LimitError: from the operation that would exceed them.
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
                f"the flow described needs more than {self.limit:,} bytes to be made, too many "
                "for a file of this size; limits: memory and growth."
            )


def _expected(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The results of an operation, without their memory; ``None`` if it depends on values."""
    if all(each.alias_info is not None for each in func._schema.returns):
        return ()  # views, and results that are written to what is there
    given = {name: value for name, value in kwargs.items() if name != "generator"}
    if any(each.name == "device" for each in func._schema.arguments):
        given |= {"device": torch.device("meta")}
    given.pop("pin_memory", None)
    args, given = tree_map_only(Tensor, _without_values, (args, given))
    try:
        return func(*args, **given)
    except Exception:  # whatever it is, the operation itself says it better
        return None


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=torch.device("meta")
    )


def _bytes(results: Any) -> int:
    tensors = (each for each in tree_leaves(results) if isinstance(each, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
