"""Record the constructor arguments of objects, so that they can be rebuilt from a file."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple, TypeVar, cast

import torch

from .arguments import check_constructor

Self = TypeVar("Self", bound="Rebuildable")


class Rebuildable:
    """Base class of objects that record their constructor arguments.

    :mod:`pyro_resflow.checkpoints` writes the arguments to a file and rebuilds the object from
    them. Transforms, networks, activations, norms, estimators and solvers derive from this class.
    Derive your own classes from it to save them inside a flow.

    Example:
        >>> import torch
        >>> from pyro_resflow.rebuilding import Rebuildable
        >>> class Sine(Rebuildable, torch.nn.Module):
        ...     def __init__(self, frequency):
        ...         super().__init__()
        ...         self.frequency = frequency
        >>> Sine(2.0).made_with
        MadeWith(args=(2.0,), kwargs={})
    """

    # Recorded in `__new__`, so that `__init__` needs no extra code; and written to `__dict__`,
    # because `__setattr__` would register modules among the arguments a second time.

    def __new__(cls: type[Self], *args: Any, **kwargs: Any) -> Self:
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError(f"{cls.__name__}() takes no arguments")
        check_constructor(cls, args, kwargs)
        self = super().__new__(cls)
        kept = {name: _recorded(value) for name, value in kwargs.items()}
        self.__dict__["_made_with"] = MadeWith(tuple(map(_recorded, args)), kept)
        return self

    @property
    def made_with(self) -> MadeWith:
        """The arguments of the constructor."""
        return self.__dict__["_made_with"]


def settings(instance: Rebuildable) -> Hashable | None:
    """The class and the present attributes of an object; equal for objects that act alike.

    It is ``None`` if an attribute cannot be compared, such as a generator with a state.
    """
    found: list[object] = [type(instance)]
    for name, value in vars(instance).items():
        if name == "_made_with":
            continue
        if isinstance(value, Rebuildable):
            value = settings(value)
            if value is None:
                return None
        elif not (value is None or isinstance(value, bool | int | float | str | torch.dtype)):
            return None
        found.append((name, value))
    return tuple(found)


class MadeWith(NamedTuple):
    """The arguments of a constructor call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class NotKept:
    """Placeholder for an argument that cannot be written to a file, for instance a lambda.

    Args:
        description: of the argument, for error messages.
    """

    description: str


def _recorded(value: Any) -> Any:
    """The recorded form of an argument: a copy of a list or dict, a placeholder for a function."""
    if type(value) in (list, tuple):
        return type(value)(map(_recorded, value))
    if type(value) is dict:
        return {key: _recorded(entry) for key, entry in value.items()}
    if isinstance(value, FunctionType | MethodType | BuiltinFunctionType):
        return NotKept(f"the function {value.__qualname__}")
    if isinstance(value, partial) and isinstance(_recorded(value.func), NotKept):
        return NotKept(f"a partial application of {_recorded(value.func).description}")
    if _is_recipe(value):
        return _recorded_recipe(value)
    if isinstance(value, Iterator):
        return NotKept(f"a {type(value).__name__}, which can be run through only once")
    return value


def _recorded_recipe(recipe: Any) -> Any:
    """The recorded form of a frozen dataclass: a copy with its current values."""
    remembered = copy.copy(recipe)
    for field in fields(recipe):
        # object.__setattr__, because a frozen dataclass forbids assignment
        object.__setattr__(remembered, field.name, _recorded(getattr(recipe, field.name)))
    return remembered


def _is_recipe(value: Any) -> bool:
    if not is_dataclass(value) or isinstance(value, type | Rebuildable | NotKept):
        return False
    return cast(Any, value).__dataclass_params__.frozen
