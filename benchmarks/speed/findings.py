"""What the benchmark finds: measurements, and rows that hold them against a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass(frozen=True)
class Measurement:
    """Repeated measurements of one contender.

    Args:
        group: what was measured, of which workload.
        contender: whose.
        values: one per run, in the unit.
        unit: ``"s"``, ``"B"``, ``"steps/s"`` or any other word.
        at: position on the axis of a curve.
    """

    group: str
    contender: str
    values: tuple[float, ...]
    unit: str
    at: float | None = None

    @property
    def median(self) -> float:
        """The median run."""
        return median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the runs."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        lower, _, upper = quantiles(self.values, n=4, method="inclusive")
        return lower, upper

    def __str__(self) -> str:
        scale, unit = {"s": (1e3, "ms"), "B": (2**-20, "MiB")}.get(self.unit, (1.0, self.unit))
        text = f"{scale * self.median:.4g}"
        if len(self.values) > 1:
            lower, upper = self.quartiles
            text += f" ({scale * lower:.4g} to {scale * upper:.4g})"
        return f"{text} {unit}"


@dataclass(frozen=True)
class AtLeast:
    """A target that is met from a value upwards.

    Args:
        value: the least that will do.
    """

    value: float

    def met(self, reached: float) -> bool:
        """Whether the target is reached."""
        return reached >= self.value

    def __str__(self) -> str:
        return f">= {self.value:g}"


@dataclass(frozen=True)
class AtMost:
    """A target that is met from a value downwards.

    Args:
        value: the most that will do.
    """

    value: float

    def met(self, reached: float) -> bool:
        """Whether the target is reached."""
        return reached <= self.value

    def __str__(self) -> str:
        return f"<= {self.value:g}"


Target = AtLeast | AtMost


@dataclass(frozen=True)
class Row:
    """One figure of the benchmark.

    Args:
        figure: what it says.
        reached: its value.
        must: what it must reach, if anything.
        aim: what it should reach.
        note: how it came about.
    """

    figure: str
    reached: float
    must: Target | None = None
    aim: Target | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it reaches what it must; ``None`` where there is no target."""
        return None if self.must is None else self.must.met(self.reached)


@dataclass
class Findings:
    """All that was found.

    Args:
        rows: the figures.
        measurements: what they were computed from.
        notes: what to know when reading them.
    """

    rows: list[Row] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Take over what another group has found."""
        self.rows += other.rows
        self.measurements += other.measurements
        self.notes += [note for note in other.notes if note not in self.notes]


def ratio(measured: Sequence[Measurement], above: str, below: str) -> float:
    """Median of one contender over the median of another."""
    medians = {m.contender: m.median for m in measured}
    return medians[above] / medians[below]
