"""Objects as JSON: what they were made with, never what they hold.

Numbers, strings and lists are themselves. Everything else is of one of these kinds. An instance or
a tensor may carry an ``id``, by which a ``ref`` elsewhere means the very same object.

=============  ==================================================================================
``class``      an instance: the class's name, its ``arguments`` and ``positional`` arguments
``tensor``     a tensor of the file, by name; ``parameter`` says that it is one
``ref``        an object that stands elsewhere
``type``       a class itself
``partial``    a ``functools.partial`` of a class, with ``arguments`` and ``positional`` ones
``tuple``      its entries
``size``       a ``torch.Size``, its entries
``dict``       pairs of keys and values
``dtype``      a type of tensors, by name
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
    """Objects as JSON.

    Attributes:
        tensors: the tensors among the arguments, by their names in the file.
        own: the classes met that are neither this package's nor torch's nor Pyro's, by name.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.own: dict[str, type] = {}
        self._nodes: dict[int, tuple[object, dict[str, Any], int]] = {}
        self._path: list[str] = []

    def encode(self, value: Any) -> Any:
        """What stands for a value in a file.

        Raises:
            NotRebuildableError: saying which argument of what cannot be written.
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
                raise self._refusal(f"the type {value}")
            return {"dtype": NAMES[value]}
        if isinstance(value, type):
            return {"type": self._name(value)}
        if isinstance(value, partial):
            given = self._arguments((value.args, value.keywords), f"partial of {value.func}")
            return {"partial": self.encode(value.func), **given}
        return self._shared(value)

    def encode_at(self, where: str, value: Any) -> Any:
        """The same; an error that comes up says where the value was."""
        self._path.append(where)
        node = self.encode(value)
        self._path.pop()
        return node

    def _shared(self, value: Any) -> dict[str, Any]:
        """A tensor or an object: the second time it is met, a reference to the first."""
        if id(value) in self._nodes:
            _, node, number = self._nodes[id(value)]
            return {"ref": node.setdefault("id", number)}
        node = {}
        # the value is kept, so that no other takes its identity
        self._nodes[id(value)] = (value, node, len(self._nodes))
        node.update(self._tensor(value) if isinstance(value, Tensor) else self._object(value))
        return node

    def _tensor(self, value: Tensor) -> dict[str, Any]:
        name = f"#{len(self.tensors)}"  # no module has a name like this
        self.tensors[name] = value
        return {"tensor": name, "parameter": isinstance(value, nn.Parameter)}

    def _object(self, value: Any) -> dict[str, Any]:
        made_with = self._made_with(value)
        name = self._name(type(value))
        return {"class": name, **self._arguments(made_with, type(value).__name__)}

    def _made_with(self, value: Any) -> Arguments:
        if type(value) in FOREIGN_NAMES:
            return FOREIGN[FOREIGN_NAMES[type(value)]][1](value)
        if isinstance(value, Rebuildable):
            return _made_with(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, NotKept):
            fields = (field.name for field in dataclasses.fields(value) if field.init)
            return (), {name: getattr(value, name) for name in fields}
        raise self._refusal(_what(value))

    def _arguments(self, made_with: Arguments, of: str) -> dict[str, Any]:
        args, kwargs = made_with
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
            raise self._refusal(f"{made.__name__}, which is no public class,")
        if name.startswith(f"{OWN}.") and self.own.setdefault(made.__name__, made) is not made:
            raise NotRebuildableError(f"there are two classes named {made.__name__} in the flow.")
        return name

    def _refusal(self, what: str) -> NotRebuildableError:
        where = ", ".join(reversed(self._path)) or "flow"
        return NotRebuildableError(
            f"{where}: {what} cannot be written to a file. Give a class or a functools.partial of "
            "one in place of a function; derive a class of your own from "
            "pyro_resflow.rebuilding.Rebuildable. A state_dict can always be saved."
        )


def _made_with(value: Rebuildable) -> Arguments:
    """The arguments of an object, by name and with their defaults where its constructor has names.

    An object that is no module holds its arguments as attributes, if anything does, and may have
    been given others since. A module's attributes are something else: of ``bias=True``, a tensor.
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


def _what(value: Any) -> str:
    """What something is, for an error."""
    if isinstance(value, NotKept):
        return value.what
    if isinstance(value, FunctionType):
        return f"the function {value.__qualname__}"
    return f"an object of class {type(value).__name__}, which is not Rebuildable,"
