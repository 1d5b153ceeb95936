"""The memory that tensors take while a program runs, counted tensor by tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors made inside the block, for as long as they are alive.

    Every operation passes through here below autograd, so what a graph keeps for its backward pass
    counts until the graph lets go of it. A storage counts once, however many views it has. On the
    meta device, where nothing is computed and no memory taken, the count is that of a device. Not
    seen is what an operation allocates and frees within itself, such as a convolution's workspace.

    Attributes:
        live: bytes of the tensors alive now that were made inside the block.
        peak: the most that ``live`` has been.

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
            # a view of a tensor from outside the block is no new memory
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
    """A meta convolution's result with its channels last if its input's are, as devices give it.

    On the meta device alone the format is lost, and each further use would take a copy.
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
