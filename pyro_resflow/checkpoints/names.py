"""The names of classes in a file; a name can refer to no class outside this list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from typing import Any

from ..rebuilding import Rebuildable
from .errors import UnknownClassError
from .foreign import FOREIGN, FOREIGN_NAMES
from .texts import SHOWN, printable, quoted

PACKAGE = __name__.partition(".")[0]

PARTS = ("classifiers", "flows", "guides", "hybrid", "logdet", "nn", "solvers", "transforms")
"""The parts of the package whose public classes a file may name: ``nn.LipSwish``."""

OWN = "own"
"""The prefix of the name of a user's class: ``own.MyNet``."""


@cache
def public_classes() -> dict[str, type]:
    """The public classes of this package, by their names in a file."""
    found = {}
    for part in PARTS:
        home = f"{PACKAGE}.{part}"
        for name, value in vars(import_module(home)).items():
            if isinstance(value, type) and not name.startswith("_") and _can_be_made(value, home):
                found[f"{part}.{name}"] = value
    return found


def _can_be_made(made: type, home: str) -> bool:
    is_ours = f"{made.__module__}.".startswith(f"{home}.")  # defined there, not imported
    return is_ours and (issubclass(made, Rebuildable) or is_dataclass(made))


def name_of(made: type) -> str | None:
    """The name of a class in a file; ``None`` for one of this package that is not public."""
    if made in FOREIGN_NAMES:
        return FOREIGN_NAMES[made]
    package, _, rest = made.__module__.partition(".")
    if package != PACKAGE:
        return f"{OWN}.{made.__name__}"
    name = f"{rest.partition('.')[0]}.{made.__name__}"
    return name if public_classes().get(name) is made else None


def class_of(name: str, own: Mapping[str, type]) -> type:
    """The class that a name in a file refers to.

    Args:
        name: the name.
        own: the classes that the user passed, by name.

    Raises:
        UnknownClassError: for any other name.
    """
    part, _, rest = name.partition(".")
    if part == OWN:
        found = own.get(rest)
    else:
        found = FOREIGN[name][0] if name in FOREIGN else public_classes().get(name)
    if found is None:
        raise UnknownClassError(
            f"{quoted(name)} is not a class that a file may name: this release of pyro_resflow "
            "has no public class of that name."
        )
    return found


def by_name(classes: Iterable[type]) -> dict[str, type]:
    """A user's classes by name.

    Raises:
        UnknownClassError: for a value that is not a class, or two classes of the same name.
    """
    named: dict[str, type] = {}
    for each in classes:
        if not isinstance(each, type):
            raise UnknownClassError(f"classes: expected classes, got {each!r}.")
        if named.setdefault(each.__name__, each) is not each:
            raise UnknownClassError(
                f"classes: expected different names, got two classes named {each.__name__}."
            )
    return named


def check_own_classes(document: Any, own: Mapping[str, type]) -> None:
    """Raise unless the user passed every class of their own that a file names.

    Args:
        document: the description.
        own: the classes that the user passed, by name.

    Raises:
        UnknownClassError: naming the missing ones.
    """
    missing = sorted({name for name in _own_names(document) if name not in own})
    if missing:
        names = ", ".join(map(printable, missing[:SHOWN]))
        names += f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UnknownClassError(
            f"classes: the flow uses classes of your own, {names}. Pass them: "
            f"load(path, classes=[{names}])."
        )


def _own_names(document: Any) -> Iterator[str]:
    left = [document]
    while left:
        node = left.pop()
        left += node if isinstance(node, list) else []
        if isinstance(node, dict):
            left += node.values()
            for entry in (node.get("class"), node.get("type")):
                part, _, name = entry.partition(".") if isinstance(entry, str) else ("", "", "")
                if part == OWN:
                    yield name
