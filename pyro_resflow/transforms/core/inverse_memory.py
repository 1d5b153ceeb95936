"""The inverse that was made of a transform, remembered."""

from __future__ import annotations

import weakref
from typing import Any


class InverseMemory:
    """Remembers the inverse made of an object, so that ``t.inv.inv is t``, and ``i.inv.inv is i``.

    The reference is weak: the inverse holds the object, not the other way round.
    """

    _inverse_ref: weakref.ref[Any] | None = None

    def _remembered_inverse(self) -> Any | None:
        return self._inverse_ref() if self._inverse_ref is not None else None

    def remember_inverse(self, inverse: object) -> None:
        """Take ``inverse`` as the inverse of this, unless another one is in use."""
        if self._remembered_inverse() is None:
            self._inverse_ref = weakref.ref(inverse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inverse_ref": None}
