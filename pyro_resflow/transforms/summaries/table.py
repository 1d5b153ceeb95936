"""Print a summary as a table that shows repeated steps once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .rows import Row
from .shapes import Shape

LONGEST_REPEAT = 8
"""The largest number of steps in a repeated sequence."""

HEADER = ("transform", "shape", "parameters", "log-det", "call", "inverse", "Lipschitz")
NUMBERS = ("parameters", "Lipschitz")
"""Right-aligned columns."""

Cells = tuple[str, ...]


def table(rows: Sequence[Row]) -> str:
    """Format rows as a table with a header."""
    lines = list(_lines(rows))
    widths = [max(map(len, column)) for column in zip(HEADER, *lines, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([_text(HEADER, widths), rule, *(_text(line, widths) for line in lines), rule])


def shape_text(shape: Shape) -> str:
    """A shape as a Python tuple; ``?`` if it is not known."""
    return str(tuple(shape)) if shape is not None else "?"


def _text(cells: Cells, widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if name in NUMBERS else cell.ljust(width)
        for name, cell, width in zip(HEADER, cells, widths, strict=True)
    )
    return "  ".join(aligned).rstrip()


def _lines(rows: Sequence[Row]) -> Iterator[Cells]:
    for times, group in repeats(rows):
        if times > 1:
            yield ("  " * group[0].depth + f"{times} times:", *[""] * (len(HEADER) - 1))
        for row in group:
            yield _cells(row, row.depth + (times > 1))


def _cells(row: Row, indent: int) -> Cells:
    ends = [shape_text(row.input_shape), shape_text(row.output_shape)]
    return (
        "  " * indent + row.name,
        " -> ".join(ends if ends[0] != ends[1] else ends[:1]),
        f"{row.parameters:,}",
        row.logdet,
        row.call,
        row.inverse,
        f"{row.lipschitz:.3f}" if row.lipschitz is not None else "",
    )


def repeats(rows: Sequence[Row]) -> Iterator[tuple[int, Sequence[Row]]]:
    """Split rows into sequences; yield each with its number of consecutive repetitions."""
    start = 0
    while start < len(rows):
        length, times = _repeat(rows, start)
        yield times, rows[start : start + length]
        start += length * times


def _repeat(rows: Sequence[Row], start: int) -> tuple[int, int]:
    """Length and repetitions of the sequence at a row whose repetitions cover the most rows."""
    best = (1, 1)
    for length in range(1, min(LONGEST_REPEAT, (len(rows) - start) // 2) + 1):
        first, times = rows[start : start + length], 1
        if any(row.depth < first[0].depth for row in first):  # the sequence leaves a transform
            break
        while rows[start + times * length : start + (times + 1) * length] == first:
            times += 1
        if times > 1 and length * times > best[0] * best[1]:
            best = (length, times)
    return best
