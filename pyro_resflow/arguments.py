"""Check constructor arguments against their annotations; errors name the class and the argument.

Without these checks a wrong argument raises an error inside torch that names neither. Properties
that an annotation does not express, such as a range, are checked where the argument is used.
"""

from __future__ import annotations

import difflib
import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from functools import cache, wraps
from typing import Any, NamedTuple, TypeVar, Union, cast

import torch
from torch.distributions import Distribution

F = TypeVar("F", bound=Callable[..., Any])

SHORTEST = 3
"""The shortest part of a name that is matched against the known names."""

SIZES = frozenset(
    {
        *("input_dim", "context_dim", "latent_dim", "num_features", "num_classes"),
        "embedding_dim",
        *("in_features", "out_features", "channels", "in_channels", "out_channels"),
        *("hidden_channels", "hidden_dims", "context_hidden_dims", "event_shape", "context_shape"),
        *("kernel_size", "kernel_sizes", "growth", "depth", "factor", "heads"),
    }
)
"""Names of size arguments: integers, all at least 1."""

CHECKED_BY_THEIR_CLASS = frozenset({("InjectivePadding", "channels")})
"""Size arguments that may be 0: appending no channels is the identity."""


class Expectation(NamedTuple):
    """The expected type of an argument.

    Args:
        met: predicate that tests a value.
        words: the description in an error message.
    """

    met: Callable[[Any], bool]
    words: str


class Signature(NamedTuple):
    """The arguments of a function or a constructor.

    Args:
        positional: names of the positional arguments, in order.
        named: names of the arguments that can be passed by keyword.
        open: whether the function accepts other keyword arguments (``**kwargs``).
        expected: the expected types, where known.
    """

    positional: tuple[str, ...]
    named: frozenset[str]
    open: bool
    expected: dict[str, Expectation]


def checked(passing_to: type | None = None, *, chosen_by: str | None = None) -> Callable[[F], F]:
    """Decorate a function or a dataclass so that it checks its arguments.

    Args:
        passing_to: the class that receives further keyword arguments, such as ``**network``.
        chosen_by: the keyword argument by which a call names another such class.
    """

    def decorate(target: F) -> F:
        if is_dataclass(target):
            init = vars(target)["__init__"]
            setattr(target, "__init__", _with_checks(init, target.__name__, None, 1, None))  # noqa: B010
            return target
        name = target.__qualname__.removesuffix(".__init__")
        skipped = int(name != target.__qualname__)
        return cast(F, _with_checks(target, name, passing_to, skipped, chosen_by))

    return decorate


def _with_checks(
    function: Callable[..., Any],
    name: str,
    passing_to: type | None,
    skipped: int,
    chosen_by: str | None,
) -> Callable[..., Any]:
    @wraps(function)
    def with_checks(*args: Any, **kwargs: Any) -> Any:
        receiver = passing_to
        if passing_to is not None and chosen_by in kwargs:
            receiver = kwargs[chosen_by]
            _check_class(name, chosen_by, receiver, passing_to)
        signature = signature_of(function, skipped, receiver)
        check(name, signature, args[skipped:], kwargs)
        return function(*args, **kwargs)

    return with_checks


def _check_class(name: str, argument: str, given: Any, default: type) -> None:
    """Check a class that a call names: it is made from the same arguments as the default class.

    Raises:
        TypeError: for another object, or for a class that is made from other arguments.
    """
    wanted = _positional(default.__init__)  # type: ignore[misc]
    if inspect.isclass(given):
        found = _positional(given.__init__)
        if found is None or found == wanted:
            return
    words = f"a class made from ({', '.join(wanted or ())}), such as {default.__name__}"
    raise TypeError(_wrong_type_message(name, argument, given, words))


@cache
def _positional(init: Callable[..., Any]) -> tuple[str, ...] | None:
    """Names of a constructor's positional arguments; ``None`` if it takes any number of them."""
    _, *parameters = inspect.signature(init).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def check_constructor(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check the arguments of a constructor of this package; user classes are not checked."""
    init = cls.__init__  # type: ignore[misc]
    if getattr(init, "__module__", "").partition(".")[0] == __package__:
        check(cls.__name__, signature_of(init, 1, None), args, kwargs)


def check(name: str, signature: Signature, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Check arguments.

    Args:
        name: name of the function or class, for the error.
        signature: its signature.
        args: positional arguments.
        kwargs: keyword arguments.

    Raises:
        TypeError: for an unknown argument or a wrong type.
        ValueError: for a size below 1.
    """
    for argument in kwargs:
        if argument not in signature.named and not signature.open:
            raise TypeError(_unknown_argument_message(name, argument, signature.named))
    for argument, value in (*zip(signature.positional, args, strict=False), *kwargs.items()):
        expectation = signature.expected.get(argument)
        if expectation is not None and not expectation.met(value):
            raise TypeError(_wrong_type_message(name, argument, value, expectation.words))
        is_size = argument in SIZES and (name, argument) not in CHECKED_BY_THEIR_CLASS
        if is_size and not _at_least_one(value):
            raise ValueError(f"{name}: {argument}: expected at least 1, got {value}.")


def _unknown_argument_message(name: str, argument: str, known: Iterable[str]) -> str:
    """The error for an unknown argument, which suggests the nearest known one."""
    inside = sorted((each for each in known if each in argument), key=len, reverse=True)
    around = sorted(each for each in known if len(argument) >= SHORTEST and argument in each)
    near = [*inside, *difflib.get_close_matches(argument, sorted(known), 1), *around]
    meant = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}."
    return f"{name}: there is no argument {argument!r}; {meant}"


def _wrong_type_message(name: str, argument: str, value: Any, words: str) -> str:
    """The error for a value of a wrong type, with a suggestion where possible."""
    meant = ""
    if argument == "event_shape":
        meant = "; the shape of an image is (channels, height, width), such as (3, 32, 32)"
    elif words.startswith("a sequence of integers") and _is_integer(value):
        meant = f"; write [{value}]"
    elif words == "an integer" and isinstance(value, list | tuple) and len(value) == 1:
        meant = f"; write {value[0]}"
    shown = value.__name__ if inspect.isclass(value) else repr(value)
    given = shown if len(shown) < 60 else type(value).__name__
    return f"{name}: {argument}: expected {words}, got {given}{meant}."


@cache
def signature_of(function: Callable[..., Any], skipped: int, passing_to: type | None) -> Signature:
    """The signature of a function without its first ``skipped`` arguments.

    It includes the arguments of the class to which the function passes keyword arguments on.
    """
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # a name imported only under TYPE_CHECKING
        hints = {}
    found = {name: expectation(hint) for name, hint in hints.items()}
    expected = {name: each for name, each in found.items() if each is not None}
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    positional = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    if passing_to is not None:
        inner = signature_of(passing_to.__init__, 1, None)  # type: ignore[misc]
        return Signature(positional, inner.named | named, inner.open, inner.expected | expected)
    return Signature(positional, frozenset(named), is_open, expected)


def expectation(hint: Any) -> Expectation | None:
    """The expectation that an annotation expresses; None if it cannot be checked."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin in (Union, types.UnionType):
        return _one_of([expectation(part) for part in arguments])
    if origin in (Sequence, tuple) and set(arguments) == {int}:
        return Expectation(_are_integers, "a sequence of integers")
    if origin in (Sequence, Iterable):
        return Expectation(lambda value: hasattr(value, "__iter__"), "a sequence")
    if origin is Callable:
        return _factory(arguments[-1]) if arguments[:1] == ([],) else _CALLABLE
    if origin is not None or not inspect.isclass(hint) or hint in (Any, bool):
        return None
    return _of_class(hint)


def _of_class(kind: type) -> Expectation:
    """Expect an instance of a class, or an object with the members of a protocol."""
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    words = f"{article} {kind.__name__}"
    if kind.__name__ == "TorchDistribution":  # torch's own distributions are accepted too
        return Expectation(lambda value: isinstance(value, Distribution), "a distribution")
    if not getattr(kind, "_is_protocol", False):
        return Expectation(lambda value: isinstance(value, kind), words)
    bases = [base for base in kind.__mro__ if getattr(base, "_is_protocol", False)]
    names = {n for base in bases for n in (*vars(base), *vars(base).get("__annotations__", {}))}
    members = [n for n in names if n == "__call__" or not n.startswith("_")]
    return Expectation(lambda value: all(hasattr(value, member) for member in members), words)


def _one_of(parts: list[Expectation | None]) -> Expectation | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    words = dict.fromkeys(part.words for part in known if part.words != "None")
    return Expectation(lambda value: any(p.met(value) for p in known), " or ".join(words))


def _factory(made: Any) -> Expectation:
    """Expect a factory: a class, or a function without arguments, that returns such an object."""
    if not inspect.isclass(made) or getattr(made, "_is_protocol", False):
        return _CALLABLE

    def met(value: Any) -> bool:
        if inspect.isclass(value):
            return issubclass(value, made)
        return callable(value) and not isinstance(value, torch.nn.Module)

    return Expectation(met, f"a class or function that makes {_of_class(made).words}")


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _are_integers(value: Any) -> bool:
    return hasattr(value, "__iter__") and (
        not hasattr(value, "__len__") or all(map(_is_integer, value))
    )


def _at_least_one(value: Any) -> bool:
    if _is_integer(value):
        return bool(value >= 1)
    return value is None or not hasattr(value, "__len__") or all(entry >= 1 for entry in value)


_CALLABLE = Expectation(callable, "something that can be called")
_PLAIN: dict[Any, Expectation] = {
    int: Expectation(_is_integer, "an integer"),
    float: Expectation(lambda value: hasattr(type(value), "__float__"), "a number"),
    type(None): Expectation(lambda value: value is None, "None"),
}
