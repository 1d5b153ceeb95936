"""Write the findings as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from .findings import Findings, Measurement, Row
from .marks import footnotes, marked


def markdown(facts: Mapping[str, str], found: Findings) -> str:
    """All findings on one page: the machine, the figures, and the measurements behind them."""
    machine = ", ".join(f"{name} {value}" for name, value in facts.items())
    parts = [machine, figures(found.rows), *details(found.measurements)]
    parts += footnotes(m.contender for m in found.measurements)
    if found.notes:
        parts.append("\n".join(f"- {note}" for note in found.notes))
    return "\n\n".join(parts)


def figures(rows: Sequence[Row]) -> str:
    """The table of figures with their targets."""
    header = ["figure", "must reach", "aim", "reached", "", "note"]
    met = {None: "", True: "met", False: "missed"}
    return table(
        header,
        [
            [
                row.figure,
                str(row.must or ""),
                str(row.aim or ""),
                f"{row.reached:.3g}",
                met[row.met],
                row.note,
            ]
            for row in rows
        ],
    )


def details(measurements: Iterable[Measurement]) -> list[str]:
    """A table for each group: a row for each contender, a column for each position."""
    found = []
    for group, members in groupby(measurements, lambda m: m.group):
        members = list(members)
        positions = sorted({m.at for m in members}, key=lambda at: at or 0)
        cells = {(m.contender, m.at): str(m) for m in members}
        header = ["", *("median (quartiles)" if at is None else f"{at:g}" for at in positions)]
        contenders = dict.fromkeys(m.contender for m in members)
        rows = [[marked(c), *(cells.get((c, at), "") for at in positions)] for c in contenders]
        found.append(f"**{group}**\n\n{table(header, rows)}")
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, facts: Mapping[str, str], found: Findings) -> None:
    """Write all findings, with the value of every run."""
    content = {
        "machine": dict(facts),
        "rows": [
            {
                "figure": row.figure,
                "reached": row.reached,
                "must": str(row.must) if row.must else None,
                "aim": str(row.aim) if row.aim else None,
                "met": row.met,
                "note": row.note,
            }
            for row in found.rows
        ],
        "measurements": [
            {**asdict(m), "median": m.median, "quartiles": m.quartiles} for m in found.measurements
        ],
        "not_log_densities": footnotes(m.contender for m in found.measurements),
        "notes": found.notes,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
