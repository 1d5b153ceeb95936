"""Show the contents of a checkpoint without building its flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO

from .description import KINDS
from .files import begins_as_torch_file, read_shapes
from .limits import Limits
from .opening import PathLike, reading
from .reference.loading import Saved
from .reference.torch_files import TorchFile
from .texts import printable, quoted, shown

WIDTH = 100
"""The width to which the description of a flow is wrapped where possible."""

NOTE = 10_000
"""The largest number of characters of a note that is shown."""


@dataclass(frozen=True)
class Information:
    """The contents of a checkpoint; ``print`` shows them with control characters escaped.

    Args:
        kind: ``"pyro_resflow"``, or ``"reference"`` for the reference implementation's files.
        flow: the description of the flow; for the reference implementation, its options.
        shapes: shapes of its parameters and buffers, by name.
        details: further details, by name.
        notes: the notes given to :func:`save`.
    """

    kind: str
    flow: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    details: Mapping[str, Any]
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """The number of entries of all parameters and buffers."""
        return sum(map(prod, self.shapes.values()))

    def __str__(self) -> str:
        facts = {**self.details, "tensors": len(self.shapes), "numbers": f"{self.numbers:,}"}
        facts |= self.notes
        lines = [f"{printable(name)}: {shown(value, NOTE)}" for name, value in facts.items()]
        if self.kind == "pyro_resflow":
            lines.append(expression(self.flow))
        else:
            args = self.flow.items()
            lines += ["args:", *(f"  {printable(name)}: {shown(value)}" for name, value in args)]
        return "\n".join(lines)


def info(path: PathLike, *, limits: Limits | None = None) -> Information:
    """The contents of a checkpoint of this package or of the reference implementation.

    It builds no flow and runs nothing that the file names.

    Args:
        path: the file.
        limits: limits on the file's contents; default: ``Limits()``.

    Returns:
        The contents, which ``print`` shows.

    Raises:
        CheckpointError: see :func:`pyro_resflow.checkpoints.load` and
            :func:`pyro_resflow.checkpoints.load_reference`.
        OSError: if the file does not exist or cannot be read.

    Example:
        >>> import tempfile
        >>> from pyro_resflow import checkpoints
        >>> from pyro_resflow.transforms import ActNorm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/flow.safetensors"
        ...     checkpoints.save(ActNorm(3), path, notes={"data": "none"})
        ...     print(checkpoints.info(path))
        format: pyro_resflow, version 1
        torch: ...
        tensors: 3
        numbers: 7
        data: none
        transforms.ActNorm(num_features=3, event_dim=1, initialized=False, cache_size=1)
    """
    limits = limits or Limits()
    with reading(path) as file:
        return (_of_reference if begins_as_torch_file(file) else _of_ours)(file, limits)


def _of_ours(file: BinaryIO, limits: Limits) -> Information:
    description, shapes = read_shapes(file, limits)
    version = description["version"]
    details = {"format": f"pyro_resflow, version {version}", "torch": description["torch"]}
    if description["settings"]:
        details["set since it was made"] = ", ".join(
            f"{path}.{name}" for path, each in description["settings"].items() for name in each
        )
    return Information("pyro_resflow", description["flow"], shapes, details, description["notes"])


def _of_reference(file: BinaryIO, limits: Limits) -> Information:
    torch_file = TorchFile(file, limits)
    saved = Saved.of(torch_file.content)
    shapes = {name: record.shape for name, record in saved.state.items()}
    return Information("reference", saved.args, shapes, _details(saved, torch_file.has_checksums))


def _details(saved: Saved, has_checksums: bool) -> dict[str, Any]:
    """Further details of a file of the reference implementation."""
    kind = "" if has_checksums else ", as before torch 1.6: without checksums"
    return {
        "format": f"the reference implementation's{kind}",
        "moving average": "no" if saved.moving_average is None else "yes",
        "test bits/dim": saved.test_bpd,
    }


def expression(node: Any, indent: str = "") -> str:
    """A node of a description, shown much like a Python expression.

    Args:
        node: JSON that passed :class:`pyro_resflow.checkpoints.description.Checker`.
        indent: indentation of the lines after the first.
    """
    inside = f"{indent}  "
    if isinstance(node, list):
        return _bracketed("[", [expression(entry, inside) for entry in node], "]", indent)
    if not isinstance(node, dict):
        return quoted(node)
    if "arguments" in node:
        is_class = "class" in node
        made = printable(node["class"]) if is_class else f"partial {expression(node['partial'])}"
        given = [expression(entry, inside) for entry in node.get("positional", [])]
        given += [f"{name}={expression(e, inside)}" for name, e in node["arguments"].items()]
        return _bracketed(f"{made}(", given, ")", indent)
    kind = next(each for each in KINDS if each in node)
    value = node[kind]
    if kind in ("tuple", "size"):
        entries = [expression(entry, inside) for entry in value]
        return _bracketed("(", entries, ",)" if len(entries) == 1 else ")", indent)
    if kind == "dict":
        entries = [f"{expression(k, inside)}: {expression(v, inside)}" for k, v in value]
        return _bracketed("{", entries, "}", indent)
    return printable(value) if kind in ("type", "dtype", "float") else f"<{kind} {shown(value)}>"


def _bracketed(start: str, entries: list[str], end: str, indent: str) -> str:
    """The entries on one line if they fit, else one per line."""
    line = f"{start}{', '.join(entries)}{end}"
    if "\n" not in line and len(indent) + len(line) < WIDTH:
        return line
    return f"{start}\n" + "".join(f"{indent}  {each},\n" for each in entries) + f"{indent}{end}"
