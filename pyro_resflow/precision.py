"""The precision that networks run in, and how to leave it for a while.

Two kinds of settings lower it. Autocast lets whole layers run in half precision. And products of
float32 matrices and convolutions may be taken in TF32 or bfloat16, with 10 or 7 bits of mantissa:
torch does so by default for convolutions on CUDA, and for matrices after
``torch.set_float32_matmul_precision("high")``. No inverse converges to seven digits in these, and
no norm is known to more than three.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

LOWERED = ("tf32", "bf16")


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What autocast computes in on the tensor's device, ``None`` where it is off."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


@dataclass(frozen=True)
class Precision:
    """What operations on a kind of device are computed in.

    Attributes:
        kind: of device, ``"cpu"`` for instance.
        autocast: what autocast computes in, ``None`` where it is off.
        products: for each of the settings of this device's float32 products, its value.
    """

    kind: str
    autocast: torch.dtype | None
    products: tuple[str, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Precision:
        """The precision in force now, on the tensor's device."""
        kind = tensor.device.type
        return cls(kind, autocast_dtype(tensor), tuple(s.value for s in settings(kind)))

    def full(self) -> Precision:
        """The same without autocast, and with products in float32."""
        products = tuple("ieee" if value in LOWERED else value for value in self.products)
        return Precision(self.kind, None, products)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """A context of this precision."""
        found = settings(self.kind)
        before = [setting.value for setting in found]
        with self._autocast():
            _set(found, self.products)
            try:
                yield
            finally:
                _set(found, before)

    def _autocast(self) -> AbstractContextManager[object]:
        if not torch.amp.is_autocast_available(self.kind):
            return nullcontext()
        if self.autocast is None:
            return torch.autocast(self.kind, enabled=False)
        return torch.autocast(self.kind, dtype=self.autocast)


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which operations keep the precision of what they are given.

    In a compiled function that is without autocast alone: the other settings are those of the
    process, which it cannot change.

    Args:
        tensor: on the device of the operations.
    """
    if torch.compiler.is_compiling():
        kind, lowered = tensor.device.type, autocast_dtype(tensor) is not None
        return torch.autocast(kind, enabled=False) if lowered else nullcontext()
    ambient = Precision.of(tensor)
    return nullcontext() if ambient == ambient.full() else ambient.full().in_force()


class _Setting:
    """One of torch's settings of float32 products: ``"ieee"``, ``"tf32"``, ``"bf16"``, ``"none"``.

    Args:
        holder: the object with the attribute ``fp32_precision``.
    """

    def __init__(self, holder: Any) -> None:
        self.holder = holder

    @property
    def value(self) -> str:
        value: str = self.holder.fp32_precision
        return value

    @value.setter
    def value(self, value: str) -> None:
        # none follows the settings above this one: a value that came from there goes on following
        self.holder.fp32_precision = "none"
        if self.holder.fp32_precision != value:
            self.holder.fp32_precision = value


class _MatmulSetting:
    """The setting of all products of matrices, before torch 2.9."""

    NAMES: ClassVar = {"highest": "ieee", "high": "tf32", "medium": "bf16"}

    @property
    def value(self) -> str:
        return self.NAMES[torch.get_float32_matmul_precision()]

    @value.setter
    def value(self, value: str) -> None:
        (name,) = (name for name, named in self.NAMES.items() if named == value)
        torch.set_float32_matmul_precision(name)


class _ConvolutionSetting:
    """The setting of convolutions on CUDA, before torch 2.9."""

    @property
    def value(self) -> str:
        return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"

    @value.setter
    def value(self, value: str) -> None:
        torch.backends.cudnn.allow_tf32 = value == "tf32"


Setting = _Setting | _MatmulSetting | _ConvolutionSetting


def _found_settings() -> dict[str, tuple[Setting, ...]]:
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        matmul = _MatmulSetting()
        return {"cuda": (_ConvolutionSetting(), matmul), "cpu": (matmul,)}
    on_cuda, on_cpu = (
        tuple(_Setting(holder) for holder in holders)
        for holders in (
            (backends.cudnn.conv, backends.cuda.matmul),
            (backends.mkldnn.conv, backends.mkldnn.matmul),
        )
    )
    return {"cuda": on_cuda, "cpu": on_cpu, "xpu": on_cpu}


_SETTINGS = _found_settings()


def settings(kind: str) -> Sequence[Setting]:
    """The settings that bear on float32 products on a kind of device."""
    return _SETTINGS.get(kind, ())


def _set(found: Sequence[Setting], values: Sequence[str]) -> None:
    for setting, value in zip(found, values, strict=True):
        if setting.value != value:
            setting.value = value
