"""The summary of a flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...arguments import checked
from .rows import ONE_PASS, UNKNOWN, Row, rows_of
from .shapes import Shape
from .steps import Step, steps_of, transforms_of
from .table import shape_text, table


@checked()
@dataclass(frozen=True, repr=False)
class Summary:
    """The result of :func:`summary`; ``print`` shows it as a table.

    Attributes:
        name: class of the flow.
        rows: one for each step, in the order of a call.
        parameters: number of parameters; shared ones count once.
        trainable: number of parameters that require gradients.
    """

    name: str
    rows: tuple[Row, ...]
    parameters: int
    trainable: int

    @property
    def input_shape(self) -> Shape:
        """Event shape of the flow's input, ``None`` if it is not known."""
        return self.rows[0].input_shape

    @property
    def output_shape(self) -> Shape:
        """Event shape of the flow's output, ``None`` if it is not known."""
        return [row for row in self.rows if not row.depth][-1].output_shape

    @property
    def lipschitz(self) -> float | None:
        """The largest nominal Lipschitz constant of a block; ``None`` without residual blocks."""
        return max((row.lipschitz for row in self.rows if row.lipschitz is not None), default=None)

    def __str__(self) -> str:
        ends = f"{shape_text(self.input_shape)} -> {shape_text(self.output_shape)}"
        return "\n".join([f"{self.name}: {ends}", "", table(self.rows), *self._notes()])

    __repr__ = __str__

    def _notes(self) -> list[str]:
        some = "all" if self.trainable == self.parameters else f"{self.trainable:,}"
        notes = [
            f"parameters: {self.parameters:,}, {some} trainable",
            f"call (sampling): {_direction(self.rows, [row.call for row in self.rows])}",
            f"inverse (log_prob): {_direction(self.rows, [row.inverse for row in self.rows])}",
        ]
        estimators = sorted({row.logdet for row in self.rows if row.random})
        if estimators:
            notes.append(f"log-determinant: random, new at every call ({', '.join(estimators)})")
        if self.lipschitz is not None:
            notes.append(
                f"Lipschitz: each network is held to at most {self.lipschitz:.3f}; "
                "pyro_resflow.nn.check_contraction certifies it"
            )
        reasons = dict.fromkeys(
            f"{row.name}: {row.why_autograd}" for row in self.rows if row.why_autograd
        )
        notes += [f"evaluated by autograd, which is slower: {each}" for each in reasons]
        return notes


def summary(flow: object, event_shape: Sequence[int] | None = None) -> Summary:
    """Summarize a flow: its blocks, shapes, parameters, estimators, directions and bounds.

    Compositions and inverses are expanded, so that each row is one step of a call; in a
    distribution a call maps noise to data. The Lipschitz constants are products of the layers'
    coefficients; nothing is measured.

    Args:
        flow: a transform of this package, Pyro or torch, conditional or not; or a distribution,
            guide or model that contains one.
        event_shape: event shape of the flow's input, for transforms that do not know theirs.

    Returns:
        A :class:`Summary`; ``print`` shows it as a table.

    Raises:
        ValueError: if there is no transform, for instance in a guide before its first call.

    Example:
        >>> import pyro_resflow
        >>> flow = pyro_resflow.residual_flow(3, blocks=2, hidden_dims=[16], fast="density")
        >>> table = pyro_resflow.summary(flow)
        >>> table.parameters, table.input_shape, table.rows[1].call
        (250, torch.Size([3]), 'Anderson')
    """
    transforms = transforms_of(flow)
    steps = steps_of(transforms)
    before = torch.Size(event_shape) if event_shape is not None else None
    parameters = _parameters(steps)
    return Summary(
        name=type(flow).__name__,
        rows=tuple(rows_of(steps, before)),
        parameters=sum(each.numel() for each in parameters),
        trainable=sum(each.numel() for each in parameters if each.requires_grad),
    )


def _parameters(steps: Sequence[Step]) -> list[Tensor]:
    """The parameters of all steps, without duplicates."""
    modules = [step.own for step in steps if isinstance(step.own, nn.Module)]
    return list(nn.ModuleList(modules).parameters())


def _direction(rows: Sequence[Row], passes: Sequence[str]) -> str:
    """Describe how a direction of the flow is computed, given those of its steps."""
    solvers = sorted({*passes} - {ONE_PASS, UNKNOWN})
    text = f"iterates ({', '.join(solvers)})" if solvers else ONE_PASS
    unknown = {row.name: None for row, each in zip(rows, passes, strict=True) if each == UNKNOWN}
    return f"{text}; not known for {', '.join(unknown)}" if unknown else text
