"""A weak reference from a transform to its inverse."""

from __future__ import annotations

import weakref
from typing import Any


class InverseMemory:
    """Remember an object's inverse, so that ``t.inv.inv is t`` and ``i.inv.inv is i``.

    The reference is weak: the inverse owns the object, not the other way round.
    """

    _inverse_ref: weakref.ref[Any] | None = None

    def _remembered_inverse(self) -> Any | None:
        return self._inverse_ref() if self._inverse_ref is not None else None

    def remember_inverse(self, inverse: object) -> None:
        """Remember ``inverse``, unless an earlier inverse is still in use."""
        if self._remembered_inverse() is None:
            self._inverse_ref = weakref.ref(inverse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inverse_ref": None}
