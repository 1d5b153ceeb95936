"""The names that classes have in a file, and the only classes that a name can stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from ..rebuilding import Rebuildable
from .errors import UnknownClassError
from .foreign import FOREIGN, FOREIGN_NAMES

PARTS = frozenset(
    {"classifiers", "flows", "guides", "hybrid", "logdet", "nn", "solvers", "transforms"}
)
"""The parts of the package whose public classes a file may name: ``nn.LipSwish``."""

OWN = "own"
"""What stands before the name of a user's class: ``own.MyNet``."""


def name_of(made: type) -> str | None:
    """The name of a class in a file; ``None`` for one of this package that is not public."""
    if made in FOREIGN_NAMES:
        return FOREIGN_NAMES[made]
    package, _, rest = made.__module__.partition(".")
    if package != __name__.partition(".")[0]:
        return f"{OWN}.{made.__name__}"
    name = f"{rest.partition('.')[0]}.{made.__name__}"
    return name if _public_class(name) is made else None


def class_of(name: str, own: Mapping[str, type]) -> type:
    """The class that a name in a file stands for.

    Args:
        name: the name.
        own: the classes that the user gave, by name.

    Raises:
        UnknownClassError: for any other name.
    """
    part, _, rest = name.partition(".")
    found = own.get(rest) if part == OWN else FOREIGN.get(name, (_public_class(name),))[0]
    if found is None:
        raise UnknownClassError(
            f"{name!r} is no class that a file may name: this release of pyro_resflow has none of "
            "that name."
        )
    return found


def by_name(classes: Iterable[type]) -> dict[str, type]:
    """A user's classes by name.

    Raises:
        UnknownClassError: for something that is no class, or two classes of one name.
    """
    named: dict[str, type] = {}
    for each in classes:
        if not isinstance(each, type):
            raise UnknownClassError(f"classes: expected classes, got {each!r}.")
        if named.setdefault(each.__name__, each) is not each:
            raise UnknownClassError(f"classes: there are two classes named {each.__name__}.")
    return named


def check_own_classes(document: Any, own: Mapping[str, type]) -> None:
    """Raise unless a user's classes that a file names are all there.

    Raises:
        UnknownClassError: naming those that are not.
    """
    missing = sorted({name for name in _own_names(document) if name not in own})
    if missing:
        raise UnknownClassError(
            f"the flow has classes of your own, {', '.join(missing)}; pass them, "
            f"load(path, classes=[{', '.join(missing)}])."
        )


def _own_names(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for entry in node:
            yield from _own_names(entry)
    elif isinstance(node, dict):
        for key, entry in node.items():
            if key in ("class", "type") and isinstance(entry, str):
                part, _, name = entry.partition(".")
                if part == OWN:
                    yield name
            yield from _own_names(entry)


def _public_class(name: str) -> type | None:
    part, _, rest = name.partition(".")
    if part not in PARTS:
        return None
    home = f"{__name__.partition('.')[0]}.{part}"
    found = getattr(import_module(home), rest, None)
    if not isinstance(found, type) or rest.startswith("_"):
        return None
    is_ours = f"{found.__module__}.".startswith(f"{home}.")  # and not imported there
    can_be_made = issubclass(found, Rebuildable) or is_dataclass(found)
    return found if is_ours and can_be_made else None
