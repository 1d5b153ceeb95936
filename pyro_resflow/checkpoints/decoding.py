"""Rebuild objects from the JSON that :mod:`pyro_resflow.checkpoints.encoding` writes.

Only classes on the list of allowed names, and classes passed by the user, are ever called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .description import FLOATS
from .dtypes import DTYPES
from .errors import CheckpointError, CorruptCheckpointError
from .names import class_of
from .texts import printable


class Decoder:
    """Rebuilds objects from JSON checked by :class:`pyro_resflow.checkpoints.description.Checker`.

    Args:
        tensors: the tensors among the constructor arguments, by name.
        own: the user's classes, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor], own: Mapping[str, type]) -> None:
        self.tensors = tensors
        self.own = own
        self._objects: dict[int, Any] = {}
        self._kinds: dict[str, Callable[[dict[str, Any], str], Any]] = {
            "class": self._instance,
            "tensor": self._tensor,
            "ref": lambda node, where: self._objects[node["ref"]],
            "type": lambda node, where: class_of(node["type"], self.own),
            "partial": self._partial,
            "tuple": lambda node, where: tuple(self.decode(node["tuple"], where)),
            "size": lambda node, where: torch.Size(self.decode(node["size"], where)),
            "dict": lambda node, where: dict(self.decode(node["dict"], where)),
            "dtype": lambda node, where: DTYPES[node["dtype"]],
            "float": lambda node, where: FLOATS[node["float"]],
        }

    def decode(self, node: Any, where: str) -> Any:
        """The object that a JSON node describes.

        Args:
            node: the parsed JSON.
            where: the node's location, for error messages.

        Raises:
            CorruptCheckpointError: if a constructor rejects its arguments.
            UnknownClassError: for an unknown class name.
        """
        if isinstance(node, list):
            return [self.decode(entry, f"{where}[{i}]") for i, entry in enumerate(node)]
        if not isinstance(node, dict):
            return node
        (kind,) = node.keys() & self._kinds.keys()
        try:
            made = self._kinds[kind](node, where)
        except (CheckpointError, Warning, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # raised by a constructor
            reason = f"{type(error).__name__}, {printable(str(error))}"
            raise CorruptCheckpointError(
                f"{where}: {reason}; this entry cannot be rebuilt."
            ) from error
        if "id" in node:
            self._objects[node["id"]] = made
        return made

    def _instance(self, node: dict[str, Any], where: str) -> Any:
        args, kwargs = self._arguments(node, where)
        return class_of(node["class"], self.own)(*args, **kwargs)

    def _partial(self, node: dict[str, Any], where: str) -> Any:
        made = self.decode(node["partial"], where)
        if not isinstance(made, type | partial):
            raise CorruptCheckpointError(
                f"{where}: expected a partial of a class, got {type(made).__name__}."
            )
        args, kwargs = self._arguments(node, where)
        return partial(made, *args, **kwargs)

    def _arguments(self, node: dict[str, Any], where: str) -> tuple[list[Any], dict[str, Any]]:
        args = self.decode(node.get("positional", []), f"{where}.positional")
        given = node["arguments"].items()
        return args, {name: self.decode(entry, f"{where}.{name}") for name, entry in given}

    def _tensor(self, node: dict[str, Any], where: str) -> Tensor:
        tensor = self.tensors[node["tensor"]]
        return nn.Parameter(tensor) if node["parameter"] else tensor
