"""Masks of coupling layers split an event into a kept half and a changed half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...arguments import checked


def first_half(channels: int) -> int:
    """The number of channels in the first half, which is the larger if the number is odd.

    Where channels are factored out, the first half stays.
    """
    return channels - channels // 2


@checked()
@dataclass(frozen=True)
class Mask:
    """A partition of an event's entries into a kept half and a changed half.

    Each half is packed into its own tensor, so that no work is spent on the other half's entries.

    Args:
        event_shape: shape of the events.
    """

    event_shape: Sequence[int]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split x, shape ``(*batch, *event_shape)``, into its kept and its changed half."""
        raise NotImplementedError

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Join two halves into events of shape ``(*batch, *event_shape)``."""
        raise NotImplementedError

    @property
    def kept_shape(self) -> torch.Size:
        """Shape of the kept half of an event."""
        return self._half_shapes()[0]

    @property
    def changed_shape(self) -> torch.Size:
        """Shape of the changed half of an event."""
        return self._half_shapes()[1]

    def _half_shapes(self) -> tuple[torch.Size, torch.Size]:
        kept, changed = self.split(torch.empty(tuple(self.event_shape), device="meta"))
        return kept.shape, changed.shape


@checked()
@dataclass(frozen=True)
class ChannelHalves(Mask):
    """Keep the first half of the channels and change the rest.

    The entries of a vector count as channels. The first half of an odd number is the larger one.

    Args:
        event_shape: ``(C, H, W)`` or ``(D,)``.
        swap: if True, keep the second half and change the first.

    Raises:
        ValueError: for fewer than two channels.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.4.

    Example:
        >>> from pyro_resflow.transforms import ChannelHalves
        >>> mask = ChannelHalves((3, 8, 8))
        >>> mask.kept_shape, mask.changed_shape
        (torch.Size([2, 8, 8]), torch.Size([1, 8, 8]))
    """

    swap: bool = False

    def __post_init__(self) -> None:
        if not len(self.event_shape) or self.event_shape[0] < 2:
            raise ValueError(
                "event_shape: expected at least two channels to split, got "
                f"{tuple(self.event_shape)}. Squeeze images first."
            )

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.tensor_split([first_half(self.event_shape[0])], dim=-len(self.event_shape))
        return (b, a) if self.swap else (a, b)

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        halves = (changed, kept) if self.swap else (kept, changed)
        return torch.cat(halves, dim=-len(self.event_shape))


@checked()
@dataclass(frozen=True)
class Columns(Mask):
    """Keep every other column, as the published code of Flow++ does (where it is "checkerboard").

    Each half is an image of half the width. If the width is odd, the half with column 0 is one
    column wider.

    Args:
        event_shape: ``(C, H, W)``.
        parity: 0 to keep columns 0, 2, ...; 1 to keep columns 1, 3, ...

    Raises:
        ValueError: if the event is not an image with at least two columns, or for another parity.

    Reference:
        Ho et al., Flow++, 2019; its published code.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import Columns
        >>> kept, changed = Columns((1, 2, 4)).split(torch.arange(8).reshape(1, 2, 4))
        >>> kept
        tensor([[[0, 2],
                 [4, 6]]])
    """

    parity: int = 0

    def __post_init__(self) -> None:
        _check_alternation(self, columns=2)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., self.parity :: 2], x[..., 1 - self.parity :: 2]

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        return _interleave(changed, kept) if self.parity else _interleave(kept, changed)


@checked()
@dataclass(frozen=True)
class Rows(Mask):
    """Keep every other row.

    Each half is an image of half the height. If the height is odd, the half with row 0 is one row
    higher.

    Args:
        event_shape: ``(C, H, W)``.
        parity: 0 to keep rows 0, 2, ...; 1 to keep rows 1, 3, ...

    Raises:
        ValueError: if the event is not an image with at least two rows, or for another parity.

    Reference:
        Kolesnikov, Pinto and Tschannen, Jet, 2024.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import Rows
        >>> kept, changed = Rows((1, 4, 2)).split(torch.arange(8).reshape(1, 4, 2))
        >>> kept
        tensor([[[0, 1],
                 [4, 5]]])
    """

    parity: int = 0

    def __post_init__(self) -> None:
        _check_alternation(self, rows=2)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., self.parity :: 2, :], x[..., 1 - self.parity :: 2, :]

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        first, second = (changed, kept) if self.parity else (kept, changed)
        return _interleave(first.mT, second.mT).mT


@checked()
@dataclass(frozen=True)
class Checkerboard(Mask):
    """Keep the white squares of a checkerboard and change the black ones.

    If the width is even, each half is an image ``(C, H, W/2)`` whose row i holds the pixels of one
    colour in row i. If the width is odd, rows hold unequal numbers of either colour, and each half
    is a single row ``(C, 1, n)``; :class:`OnFullImage` then shows a conditioner the whole image.

    Args:
        event_shape: ``(C, H, W)``.
        parity: 0 to keep pixels (i, j) with i + j even; 1 to keep those with i + j odd.

    Raises:
        ValueError: if the event is not an image with at least two pixels, or for another parity.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.4.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import Checkerboard
        >>> x = torch.arange(8).reshape(1, 2, 4)
        >>> kept, changed = Checkerboard((1, 2, 4)).split(x)
        >>> kept
        tensor([[[0, 2],
                 [5, 7]]])
    """

    parity: int = 0

    def __post_init__(self) -> None:
        _check_alternation(self, columns=1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.event_shape[-1] % 2:
            # with an odd width, colours alternate along the flattened rows too
            raster = x.flatten(-2).unsqueeze(-2)
            return raster[..., self.parity :: 2], raster[..., 1 - self.parity :: 2]
        even, odd = x[..., 0::2], x[..., 1::2]
        return self._swap_rows(even, odd)

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        if self.event_shape[-1] % 2:
            halves = (changed, kept) if self.parity else (kept, changed)
            return _interleave(*halves).reshape(*kept.shape[:-2], *self.event_shape[1:])
        return _interleave(*self._swap_rows(kept, changed))

    def _swap_rows(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange a and b in the rows of the other parity; doing it twice changes nothing."""
        rows = torch.arange(a.shape[-2], device=a.device) % 2 == self.parity
        return torch.where(rows[:, None], a, b), torch.where(rows[:, None], b, a)


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    """Interleave along the last dimension: first[0], second[0], first[1], ...

    The second tensor may be one entry shorter.
    """
    columns = first.shape[-1] + second.shape[-1]
    second = F.pad(second, (0, first.shape[-1] - second.shape[-1]))
    return torch.stack([first, second], dim=-1).flatten(-2)[..., :columns]


def _check_alternation(
    mask: Columns | Rows | Checkerboard, *, rows: int = 1, columns: int = 1
) -> None:
    """Raise unless images have both kinds of rows, columns or pixels, and the parity is 0 or 1.

    Raises:
        ValueError: naming the argument and its value.
    """
    shape = tuple(mask.event_shape)
    enough = len(shape) == 3 and shape[1] >= rows and shape[2] >= columns
    if not enough or shape[1] * shape[2] < 2:
        raise ValueError(
            f"event_shape: expected (C, H, W) with at least two {type(mask).__name__.lower()} or "
            f"pixels to tell apart, got {shape}. ChannelHalves splits the channels instead."
        )
    if mask.parity not in (0, 1):
        raise ValueError(f"parity: expected 0 or 1, got {mask.parity}.")
