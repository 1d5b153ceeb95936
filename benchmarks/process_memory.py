"""What this process takes of the memory, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory.

    Args:
        field: ``VmRSS`` for now, ``VmHWM`` for the most since it was last reset.

    Raises:
        RuntimeError: where there is no such line in /proc/self/status, as elsewhere than on Linux.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise RuntimeError("resident memory is read from /proc, which needs Linux.") from error
    for line in lines:
        name, _, rest = line.partition(":")
        if name == field:
            return 1024 * int(rest.split()[0])
    raise RuntimeError(f"/proc/self/status has no {field}.")
