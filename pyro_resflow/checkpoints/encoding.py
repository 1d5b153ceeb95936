"""Encode objects as JSON: their constructor arguments, never their state.

Numbers, strings and lists are written as they are. Every other value is one of the kinds below. An
instance or a tensor may have an ``id``; a ``ref`` with that id is the same object.

=============  ==================================================================================
``class``      an instance: the class's name, its ``arguments`` and ``positional`` arguments
``tensor``     a tensor of the file, by name; ``parameter`` tells whether it is an ``nn.Parameter``
``ref``        an object described earlier
``type``       a class itself
``partial``    a ``functools.partial`` of a class, with ``arguments`` and ``positional`` arguments
``tuple``      its entries
``size``       the entries of a ``torch.Size``
``dict``       pairs of keys and values
``dtype``      a dtype, by name
``float``      a number that is not finite
=============  ==================================================================================
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from functools import partial
from numbers import Integral, Real
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..rebuilding import NotKept, Rebuildable
from .dtypes import NAMES
from .errors import NotRebuildableError
from .foreign import FOREIGN, FOREIGN_NAMES, Arguments
from .names import OWN, name_of


class Encoder:
    """Encodes objects as JSON.

    Attributes:
        tensors: the tensors among the arguments, by their names in the file.
        own: the user's classes encountered (not from this package, torch or Pyro), by name.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.own: dict[str, type] = {}
        self._nodes: dict[int, tuple[object, dict[str, Any], int]] = {}
        self._path: list[str] = []

    def encode(self, value: Any) -> Any:
        """The JSON node for a value.

        Raises:
            NotRebuildableError: naming the argument that cannot be written.
        """
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, Real):
            number = float(value)
            return number if math.isfinite(number) else {"float": repr(number)}
        if isinstance(value, list | range):
            return [self.encode(entry) for entry in value]
        if type(value) in (tuple, torch.Size):
            kind = "tuple" if type(value) is tuple else "size"
            return {kind: [self.encode(entry) for entry in value]}
        if type(value) is dict:
            return {"dict": [[self.encode(key), self.encode(value[key])] for key in value]}
        if isinstance(value, torch.dtype):
            if value not in NAMES:
                raise self._refusal(f"the dtype {value}")
            return {"dtype": NAMES[value]}
        if isinstance(value, type):
            return {"type": self._name(value)}
        if isinstance(value, partial):
            given = self._arguments((value.args, value.keywords), f"partial of {value.func}")
            return {"partial": self.encode(value.func), **given}
        return self._shared(value)

    def encode_at(self, where: str, value: Any) -> Any:
        """The JSON node for a value whose location ``where`` errors name."""
        self._path.append(where)
        node = self.encode(value)
        self._path.pop()
        return node

    def _shared(self, value: Any) -> dict[str, Any]:
        """The node of a tensor or an object; from its second use on, a reference to the first."""
        if id(value) in self._nodes:
            _, node, number = self._nodes[id(value)]
            return {"ref": node.setdefault("id", number)}
        node = {}
        # keep the value alive, so that no other object gets the same id()
        self._nodes[id(value)] = (value, node, len(self._nodes))
        node.update(self._tensor(value) if isinstance(value, Tensor) else self._object(value))
        return node

    def _tensor(self, value: Tensor) -> dict[str, Any]:
        name = f"#{len(self.tensors)}"  # no module can have such a name
        self.tensors[name] = value
        return {"tensor": name, "parameter": isinstance(value, nn.Parameter)}

    def _object(self, value: Any) -> dict[str, Any]:
        arguments = self._constructor_arguments(value)
        name = self._name(type(value))
        return {"class": name, **self._arguments(arguments, type(value).__name__)}

    def _constructor_arguments(self, value: Any) -> Arguments:
        if type(value) in FOREIGN_NAMES:
            return FOREIGN[FOREIGN_NAMES[type(value)]][1](value)
        if isinstance(value, Rebuildable):
            return _constructor_arguments(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, NotKept):
            fields = (field.name for field in dataclasses.fields(value) if field.init)
            return (), {name: getattr(value, name) for name in fields}
        raise self._refusal(_named(value))

    def _arguments(self, arguments: Arguments, of: str) -> dict[str, Any]:
        args, kwargs = arguments
        node: dict[str, Any] = {}
        if args:
            places = (f"argument {i} of {of}" for i in range(len(args)))
            node["positional"] = list(map(self.encode_at, places, args))
        node["arguments"] = {
            name: self.encode_at(f"{name} of {of}", value) for name, value in kwargs.items()
        }
        return node

    def _name(self, made: type) -> str:
        name = name_of(made)
        if name is None:
            raise self._refusal(f"{made.__name__}, which is not a public class,")
        if name.startswith(f"{OWN}.") and self.own.setdefault(made.__name__, made) is not made:
            raise NotRebuildableError(f"flow: it contains two classes named {made.__name__}.")
        return name

    def _refusal(self, description: str) -> NotRebuildableError:
        where = ", ".join(reversed(self._path)) or "flow"
        return NotRebuildableError(
            f"{where}: {description} cannot be written to a file. Pass a class, or a "
            "functools.partial of a class, instead of a function; derive your own classes from "
            "pyro_resflow.rebuilding.Rebuildable. A state_dict can always be saved."
        )


def _constructor_arguments(value: Rebuildable) -> Arguments:
    """The constructor arguments of an object, by name and with their defaults where possible.

    A strategy object keeps its arguments as attributes, which may have been set since: the
    attributes win. A module's attributes can differ in kind: ``bias=True`` becomes a tensor.
    """
    signature = inspect.signature(type(value).__init__)
    bound = signature.bind(value, *value.made_with.args, **value.made_with.kwargs)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return value.made_with
    bound.apply_defaults()
    _, *names = signature.parameters
    arguments: dict[str, Any] = {}
    for name in names:
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(bound.arguments[name])
        else:
            arguments[name] = bound.arguments[name]
    if not isinstance(value, nn.Module):
        arguments = {name: vars(value).get(name, given) for name, given in arguments.items()}
    return (), arguments


def _named(value: Any) -> str:
    """A short description of a value, for an error message."""
    if isinstance(value, NotKept):
        return value.description
    if isinstance(value, FunctionType):
        return f"the function {value.__qualname__}"
    return f"an object of class {type(value).__name__}, which is not Rebuildable,"
