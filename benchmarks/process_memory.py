"""The memory of this process, as Linux reports it."""

from __future__ import annotations

from pathlib import Path


def resident(field: str = "VmRSS") -> int:
    """The resident memory of this process, in bytes.

    Args:
        field: ``VmRSS`` for the current value, ``VmHWM`` for the peak since its last reset.

    Raises:
        RuntimeError: if /proc/self/status has no such line. Only Linux has this file.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise RuntimeError("resident memory: it is read from /proc, which needs Linux.") from error
    for line in lines:
        name, _, rest = line.partition(":")
        if name == field:
            return 1024 * int(rest.split()[0])
    raise RuntimeError(f"/proc/self/status has no {field}.")
