"""A mixin that lets a transform print a summary of itself."""

from __future__ import annotations

from collections.abc import Sequence

from .summary import Summary, summary


class Summarized:
    """A transform that declares how its directions are computed, and prints itself as a table."""

    is_inverse = False
    """Whether it is the inverse of its attribute ``transform``."""

    @property
    def passes(self) -> tuple[str, str]:
        """How a call and the inverse are computed: ``"one pass"``, or the name of a solver class.

        Override this property in your own transform that iterates. An empty string means unknown.
        """
        return "one pass", "one pass"

    def summary(self, event_shape: Sequence[int] | None = None) -> Summary:
        """Summarize the transform as a table, see :func:`pyro_resflow.summary`.

        Args:
            event_shape: event shape of the input, for transforms that do not know theirs.
        """
        return summary(self, event_shape)

    def __str__(self) -> str:
        return str(self.summary())
