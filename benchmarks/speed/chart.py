"""Draw the findings as one chart."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .contenders import KEEP, RECOMPUTE, REDUCED
from .findings import Measurement
from .marks import footnotes, marked

SCALES = {"s": (1e3, "ms"), "B": (2**-20, "MiB")}
CHARTED = ("training step", "peak memory", "log_prob", "inverse", "network evaluations")
COLOURS = {
    KEEP.name: "tab:blue",
    RECOMPUTE.name: "tab:cyan",
    "pyro-resflow": "steelblue",
    REDUCED.name: "tab:orange",
    "normflows": "sandybrown",
    "torchflows": "tab:green",
    "zuko": "tab:purple",
    "Pyro": "tab:red",
    "": "tab:gray",
}
"""Colours by the beginning of a contender's name; the longest match counts."""


def draw(
    measurements: Sequence[Measurement],
    title: str,
    path: Path,
    charted: Sequence[str] = CHARTED,
) -> None:
    """Draw every group that compares contenders: as curves if it has an axis, otherwise as bars.

    Args:
        measurements: all measurements.
        title: title of the chart.
        path: file of the picture.
        charted: the beginnings of the names of the groups to draw.
    """
    groups = [
        (name, list(members))
        for name, members in groupby(measurements, lambda m: m.group)
        if name.startswith(tuple(charted)) and "update of" not in name
    ]
    if not groups:
        return
    columns = min(2 if len(groups) == 4 else 3, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (name, members) in zip(panels, groups, strict=False):
        (bars if members[0].at is None else curves)(axes, members)
        axes.set_title(textwrap.fill(name, 42), fontsize=9)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    drawn = [m.contender for _, members in groups for m in members]
    figure.suptitle(title, fontsize=9)
    figure.supxlabel("\n".join(footnotes(drawn)), fontsize=8)
    figure.savefig(path, dpi=120)


def bars(axes: Axes, members: Sequence[Measurement]) -> None:
    """Draw medians with quartiles, one bar for each contender, the first on top."""
    scale, unit = SCALES.get(members[0].unit, (1.0, members[0].unit))
    names = [m.contender for m in members]
    medians = [scale * m.median for m in members]
    spans = [[scale * abs(q - m.median) for q in m.quartiles] for m in members]
    labels = [marked(name) for name in names]
    axes.barh(labels, medians, color=[colour_of(name) for name in names])
    for i, member in enumerate(members):
        if len(member.values) > 1:
            axes.errorbar(medians[i], i, xerr=[[s] for s in spans[i]], color="black", capsize=2)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.tick_params(labelsize=8)


def curves(axes: Axes, members: Sequence[Measurement]) -> None:
    """Draw medians with quartiles against the position, with both axes from zero."""
    scale, unit = SCALES.get(members[0].unit, (1.0, members[0].unit))
    for name in dict.fromkeys(m.contender for m in members):
        curve = [m for m in members if m.contender == name]
        positions = [m.at for m in curve]
        colour = colour_of(name)
        lower, upper = zip(*(m.quartiles for m in curve), strict=True)
        axes.fill_between(
            positions,
            [scale * q for q in lower],
            [scale * q for q in upper],
            color=colour,
            alpha=0.2,
        )
        axes.plot(
            positions, [scale * m.median for m in curve], "o-", color=colour, label=marked(name)
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(members[0].group.partition("against ")[2].partition(",")[0])
    axes.set_ylabel(unit)
    axes.legend(fontsize=7)
    axes.tick_params(labelsize=8)


def colour_of(contender: str) -> str:
    """The contender's colour, the same in every panel."""
    beginnings = [name for name in COLOURS if contender.startswith(name)]
    return COLOURS[max(beginnings, key=len)]
