"""Count the memory of all live tensors while a program runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the live tensors that were created inside the ``with`` block.

    The mode sees every operation below autograd. Tensors that a graph saves for its backward pass
    therefore count until the graph is freed. A storage counts once, even if it has several views.
    On the meta device, which computes nothing and allocates no memory, the counts are those of a
    real device. Memory that an operation allocates and frees internally, such as the workspace of
    a convolution, is not counted.

    Attributes:
        live: bytes of the live tensors that were created inside the block.
        peak: the largest value of ``live``.

    Example:
        >>> import torch
        >>> from benchmarks.live_memory import LiveMemory
        >>> x = torch.empty(1000, device="meta")
        >>> with LiveMemory() as memory:
        ...     y = (x + 1).exp()
        >>> memory.live, memory.peak
        (4000, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._watched: set[int] = set()

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = _in_the_format_of_devices(function, args, function(*args, **kwargs))
        for storage in _storages(result):
            # a view of a tensor from outside the block allocates nothing
            if storage._cdata not in given and storage._cdata not in self._watched:
                self._watch(storage)
        return result

    def _watch(self, storage: UntypedStorage) -> None:
        self._watched.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._watched.discard(key)
        self.live -= size


def _in_the_format_of_devices(function: object, args: tuple[Any, ...], result: Any) -> Any:
    """Give a meta convolution's result the memory format that real devices return.

    With the channels of the input last, real devices return channels last. The meta device does
    not, and every further use would count a copy.
    """
    if (
        function is torch.ops.aten.convolution.default
        and result.is_meta
        and args[0].stride()[1] == 1
    ):
        return torch.empty_like(result, memory_format=torch.channels_last)
    return result


def _storages(tree: object) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
