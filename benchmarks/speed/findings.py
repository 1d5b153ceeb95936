"""Results of the benchmark: measurements, and figures with their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass(frozen=True)
class Measurement:
    """Repeated measurements of one contender.

    Args:
        group: the measured quantity and its workload.
        contender: name of the contender.
        values: one value per run, in the unit.
        unit: ``"s"``, ``"B"``, ``"steps/s"`` or any other unit.
        at: position on the axis of a curve.
    """

    group: str
    contender: str
    values: tuple[float, ...]
    unit: str
    at: float | None = None

    @property
    def median(self) -> float:
        """The median over the runs."""
        return median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile over the runs."""
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
    """A target that values from a minimum reach.

    Args:
        value: the minimum.
    """

    value: float

    def met(self, reached: float) -> bool:
        """Whether the target is reached."""
        return reached >= self.value

    def __str__(self) -> str:
        return f">= {self.value:g}"


@dataclass(frozen=True)
class AtMost:
    """A target that values up to a maximum reach.

    Args:
        value: the maximum.
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
        figure: description of the figure.
        reached: its value.
        must: required target, if any.
        aim: desired target, if any.
        note: details of the measurement.
    """

    figure: str
    reached: float
    must: Target | None = None
    aim: Target | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it reaches the required target; ``None`` without one."""
        return None if self.must is None else self.must.met(self.reached)


@dataclass
class Findings:
    """All results of a run.

    Args:
        rows: the figures.
        measurements: the measurements behind the figures.
        notes: remarks for the reader.
    """

    rows: list[Row] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Append the results of another group."""
        self.rows += other.rows
        self.measurements += other.measurements
        self.notes += [note for note in other.notes if note not in self.notes]


def ratio(measured: Sequence[Measurement], above: str, below: str) -> float:
    """The median of one contender divided by the median of another."""
    medians = {m.contender: m.median for m in measured}
    return medians[above] / medians[below]
