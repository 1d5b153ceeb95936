"""Command lines with short errors that suggest a correction."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli

# Lines of jsonargparse that do not concern the value given.
NOISE = re.compile(r"\s*(- Expected a path but .* invalid|Subtypes: .*|Given value type: .*|)")
CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
MODULES = re.compile(r"\b(?:collections\.abc|typing|torch\.nn\.modules\.module)\.(?=[A-Z])")
PROJECT = ("pyro_resflow", "examples")
KEY = re.compile(r'Parser key "([\w.]+)"')
LISTED = 20
"""The largest number of class names to list in a hint."""

SIMILAR = 0.6
"""Similarity, from 0 to 1, from which `difflib` suggests a name."""


class ShortErrors:
    """Makes a parser of jsonargparse print the fault, a correction and the command for help."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print an error and exit, without jsonargparse's two screens of usage."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        print("error:", shortened(message), file=sys.stderr)
        for hint in (*parser.hints(message), f"all options: {program} --help"):
            print(f"  {hint}", file=sys.stderr)
        sys.exit(2)

    def hints(self, message: str) -> Iterator[str]:
        """Yield corrections for an error message."""
        yield from unknown_options(message, (action.dest for action in self._actions))
        yield from unknown_classes(message, self._expected_class(message))
        yield from missing_arguments(message)

    def _expected_class(self, message: str) -> type | None:
        """Return the class that the setting in a message expects, if it expects one."""
        keys = KEY.findall(message)
        types = [a._typehint for a in self._actions if keys == [a.dest] and _has_type(a)]
        return types[0] if types and inspect.isclass(types[0]) else None


class Parser(ShortErrors, ArgumentParser):
    """jsonargparse's parser, with short errors."""


def command_line(components: Callable[..., Any] | list[Callable[..., Any]]) -> Any:
    """Run a command line made from functions, as `jsonargparse.auto_cli` does.

    Args:
        components: One function, or one for each subcommand.
    """
    return auto_cli(components, parser_class=Parser, prog=f"python -m {running_module()}")


def running_module() -> str:
    """Return the name of the module that Python runs."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec is not None else sys.argv[0]


def shortened(message: str) -> str:
    """Remove the lines of a jsonargparse message that do not concern the value given."""
    lines = [line for line in message.splitlines() if not NOISE.fullmatch(line)]
    plain = CLASS.sub(r"\1", KEY.sub(r"\1", "\n".join(lines)))
    return MODULES.sub("", plain).replace("Expected a ", "expected ")


def unknown_options(message: str, options: Iterable[str]) -> Iterator[str]:
    """Yield the existing option nearest to an unknown one."""
    if match := re.search(r"unrecognized arguments: (.*)", message):
        given = [word.lstrip("-").split("=")[0] for word in match[1].split() if word[:1] == "-"]
        written = "--{}".format
    elif match := re.search(r"does not accept option '([\w.]+)'", message):
        given, written = [match[1]], "{}".format
    elif match := re.search(r"class_path '([\w.]+)':\s+Option '(\w+)' is not accepted", message):
        given, written, options = [match[2]], "{}".format, parameters(match[1])
    else:
        return
    names = list(options)
    for name in given:
        yield from nearest(name, names, written)
    if match.re.groups == 2:
        yield f"{match[1].rsplit('.')[-1]} takes {', '.join(names)}"


def unknown_classes(message: str, expected: type | None) -> Iterator[str]:
    """Yield the existing class nearest to an unknown one, and all classes if they are few."""
    match = re.search(
        r"dot import path string: ([\w.]+)"
        r"|class_path '([\w.]+)':\s+module '[\w.]+' has no attribute"
        r"|has no attribute '(\w+)'"
        r"|Import path ([\w.]+) does not correspond",
        message,
    )
    if match is None:
        return
    name = next(filter(None, match.groups())).rsplit(".")[-1]
    known = known_classes(expected)
    # Of several classes with one name, take the one in the outermost package.
    paths = {path.rsplit(".")[-1]: path for path in reversed(known)}
    yield from nearest(name, paths, lambda found: paths[found])
    if expected is not None and len(known) <= LISTED:
        yield f"known: {', '.join(sorted(paths))}"
        yield f"or the path of a class of your own that extends {expected.__name__}"


def missing_arguments(message: str) -> Iterator[str]:
    """Yield the options that give the missing arguments of a class."""
    match = re.search(
        r"class_path '[\w.]+':\s+the following arguments are required: (.+)", message
    )
    keys = KEY.findall(message)
    if match and keys:
        yield "give " + ", ".join(f"--{keys[0]}.{name}" for name in match[1].split(", "))


def nearest(name: str, names: Iterable[str], written: Callable[[str], str]) -> Iterator[str]:
    """Yield the name nearest to the given one, if one is similar."""
    found = difflib.get_close_matches(name, list(names), 1, SIMILAR)
    if found:
        yield f"did you mean {written(found[0])}?"


def parameters(path: str) -> list[str]:
    """Return the names of a class's arguments."""
    module, _, name = path.rpartition(".")
    signature = inspect.signature(getattr(import_module(module), name))
    return [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]


def known_classes(expected: type | None) -> list[str]:
    """Return the paths of this project's public classes, or only the subclasses of one class."""
    found: dict[type, str] = {}
    ours = [name for name in sys.modules if name.split(".")[0] in PROJECT]
    for module in sorted(ours, key=lambda name: (name.count("."), name)):
        for name in _exported_names(module):
            value = getattr(sys.modules[module], name)
            if inspect.isclass(value) and _is_concrete_kind(value, expected):
                found.setdefault(value, f"{module}.{name}")
    return list(found.values())


def _exported_names(module: str) -> Iterable[str]:
    """Return the names that a module exports: none if its package exports them."""
    packages = [sys.modules.get(module[: dot.start()]) for dot in re.finditer(r"\.", module)]
    hidden = any(hasattr(package, "__all__") for package in packages)
    names = () if hidden else [n for n in vars(sys.modules[module]) if not n.startswith("_")]
    return getattr(sys.modules[module], "__all__", names)


def _is_concrete_kind(value: type, expected: type | None) -> bool:
    if value.__module__.split(".")[0] not in PROJECT or inspect.isabstract(value):
        return False
    return expected is None or (issubclass(value, expected) and value is not expected)


def _has_type(action: Any) -> bool:
    return getattr(action, "_typehint", None) is not None
