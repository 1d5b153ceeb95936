"""What a checkpoint is, without making its flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from .files import Path_, about, is_torch_file, read_shapes
from .reference import Saved
from .torch_files import TorchFile

WIDTH = 100
"""The longest line that is shown of a flow, if it can be broken."""


@dataclass(frozen=True)
class Information:
    """What a file says of itself; ``print`` shows it.

    Args:
        kind: ``"pyro_resflow"``, or ``"reference"`` for the reference implementation's.
        flow: what the flow is made with; of the reference implementation, its options.
        shapes: of its parameters and buffers, by name.
        details: what else there is to say.
        notes: what was said of it when it was saved.
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
        what = {**self.details, "tensors": len(self.shapes), "numbers": f"{self.numbers:,}"}
        lines = [f"{name}: {value}" for name, value in what.items()]
        lines += [f"{name}: {value}" for name, value in self.notes.items()]
        if "class" in self.flow:
            lines.append(expression(self.flow))
        else:
            lines += ["args:", *(f"  {name}: {value}" for name, value in self.flow.items())]
        return "\n".join(lines)


def info(path: Path_) -> Information:
    """What a checkpoint holds: one of ours, or one of the reference implementation's.

    No flow is made and nothing that the file names is run.

    Args:
        path: the file.

    Raises:
        CheckpointError: see :func:`pyro_resflow.checkpoints.load` and
            :func:`pyro_resflow.checkpoints.load_reference`.
        OSError: if there is no such file, or it cannot be read.

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
    return _of_reference(path) if is_torch_file(path) else _of_ours(path)


def _of_ours(path: Path_) -> Information:
    description, shapes = read_shapes(path)
    version = description["version"]
    details = {"format": f"pyro_resflow, version {version}", "torch": description["torch"]}
    if description["settings"]:
        details["set since it was made"] = ", ".join(
            f"{path}.{name}" for path, each in description["settings"].items() for name in each
        )
    return Information("pyro_resflow", description["flow"], shapes, details, description["notes"])


def _of_reference(path: Path_) -> Information:
    with TorchFile(path) as file, about(path):
        saved = Saved.of(file.content)
    average = "no" if saved.moving_average is None else "yes"
    details = {
        "format": "the reference implementation's",
        "moving average": average,
        "test bits/dim": saved.test_bpd,
    }
    shapes = {name: record.shape for name, record in saved.state.items()}
    return Information("reference", saved.args, shapes, details)


def expression(node: Any, indent: str = "") -> str:
    """A node of a description as a Python expression, more or less.

    Args:
        node: what JSON has.
        indent: of the lines after the first.
    """
    inside = f"{indent}  "
    if isinstance(node, list):
        return _bracketed("[", [expression(entry, inside) for entry in node], "]", indent)
    if not isinstance(node, dict):
        return repr(node)
    if "arguments" in node:
        made = node["class"] if "class" in node else f"partial {expression(node['partial'])}"
        given = [expression(entry, inside) for entry in node.get("positional", [])]
        given += [f"{name}={expression(e, inside)}" for name, e in node["arguments"].items()]
        return _bracketed(f"{made}(", given, ")", indent)
    (kind, what), *_ = node.items()
    if kind in ("tuple", "size"):
        entries = [expression(entry, inside) for entry in what]
        return _bracketed("(", entries, ",)" if len(entries) == 1 else ")", indent)
    return str(what) if kind in ("type", "dtype", "float") else f"<{kind} {what}>"


def _bracketed(start: str, entries: list[str], end: str, indent: str) -> str:
    """Entries in a line if there is room, else one below the other."""
    line = f"{start}{', '.join(entries)}{end}"
    if "\n" not in line and len(indent) + len(line) < WIDTH:
        return line
    return f"{start}\n" + "".join(f"{indent}  {each},\n" for each in entries) + f"{indent}{end}"
