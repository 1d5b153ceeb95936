"""What lets a transform summarize itself."""

from __future__ import annotations

from collections.abc import Sequence

from .summary import Summary, summary


class Summarized:
    """A transform that knows how its directions are computed, and prints itself as a table."""

    is_inverse = False
    """Whether it runs another transform, its attribute ``transform``, backwards."""

    @property
    def passes(self) -> tuple[str, str]:
        """How a call and the inverse are computed: ``"one pass"``, or the class of the solver.

        Override it in a transform of your own that iterates; an empty text stands for unknown.
        """
        return "one pass", "one pass"

    def summary(self, event_shape: Sequence[int] | None = None) -> Summary:
        """Blocks, shapes, parameters, estimators, directions and bounds, as a table.

        Args:
            event_shape: event shape of the input, for transforms that do not know it; see
                :func:`pyro_resflow.summary`.
        """
        return summary(self, event_shape)

    def __str__(self) -> str:
        return str(self.summary())
