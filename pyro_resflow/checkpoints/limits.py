"""Limits on the contents of a file."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Limits on the contents of a file; a file that exceeds one is rejected.

    A file of a few bytes can describe a flow of any size. These limits keep the work and the
    memory in proportion to the file. The defaults are far above the needs of a flow; raise a limit
    if an error names it and you trust the file.

    Args:
        header: bytes of a safetensors header, or of a pickle.
        depth: nesting depth of a description: objects inside objects.
        entries: entries of a description; a reference counts as many as the object it refers to.
        instructions: instructions of a pickle; a copy of a list counts as its length.
        memory: bytes that the constructors of a flow may allocate in total, temporaries included;
            each operation on tensors counts as 1,024 bytes more.
        growth: how many times the file's size the constructors may allocate on top of ``memory``.

    Raises:
        ValueError: naming the limit that is not a positive integer.

    Example:
        >>> from pyro_resflow.checkpoints import Limits
        >>> Limits(memory=2**30).allocation(file_size=2**20)
        1107296256
    """

    header: int = 2**24
    depth: int = 64
    entries: int = 200_000
    instructions: int = 5_000_000
    memory: int = 2**26
    growth: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field.name}: expected a positive integer, got {value!r}.")

    def allocation(self, file_size: int) -> int:
        """The bytes that the constructors may allocate for a file of this size."""
        return self.memory + self.growth * file_size
