"""The precision that networks run in, and how to leave it for a while.

Two kinds of settings lower it. Autocast lets whole layers run in half precision. And products of
float32 matrices and convolutions may be taken in TF32 or bfloat16, with 10 or 7 bits of mantissa:
torch does so by default for convolutions on CUDA, and for matrices after
``torch.set_float32_matmul_precision("high")``. No inverse converges to seven digits in these, and
no norm is known to more than three.

Autocast is each thread's own, the other settings are those of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What autocast computes in on the tensor's device, ``None`` where it is off."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def precision(tensor: Tensor) -> tuple[object, ...]:
    """All settings in force on the tensor's device, to be compared."""
    return autocast_dtype(tensor), *products_on(tensor.device.type).values


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which operations keep the precision of what they are given.

    In a compiled function that is without autocast alone: it cannot change the process.

    Args:
        tensor: on the device of the operations.
    """
    kind = tensor.device.type
    if not torch.compiler.is_compiling():
        return _full(kind)
    lowered = autocast_dtype(tensor) is not None
    return torch.autocast(kind, enabled=False) if lowered else nullcontext()


@contextmanager
def _full(kind: str) -> Iterator[None]:
    with _autocast(kind, None), products_on(kind).full():
        yield


@dataclass(frozen=True)
class Ambient:
    """What was in force around a region of full precision.

    Attributes:
        kind: of device, ``"cpu"`` for instance.
        autocast: what autocast computed in, ``None`` where it was off.
    """

    kind: str
    autocast: torch.dtype | None

    @classmethod
    def of(cls, tensor: Tensor) -> Ambient:
        """What is in force now, on the tensor's device."""
        return cls(tensor.device.type, autocast_dtype(tensor))

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """A context of this autocast, with products as the process allows them."""
        with _autocast(self.kind, self.autocast), products_on(self.kind).allowed():
            yield


def _autocast(kind: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    if dtype is None:
        enabled = torch.is_autocast_enabled(kind)
        return torch.autocast(kind, enabled=False) if enabled else nullcontext()
    return torch.autocast(kind, dtype=dtype)


class Products:
    """The process's settings of float32 products on one kind of device.

    Several threads, and calls within calls, may ask for full precision at the same time: it lasts
    until the last of them is done.

    Args:
        settings: those that bear on this kind of device.
    """

    def __init__(self, settings: Sequence[Setting] = ()) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._regions = 0
        self._own = threading.local()
        self._allowed: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """The value of each setting: ``"ieee"``, ``"tf32"``, ``"bf16"``, ``"none"``."""
        return tuple(setting.value for setting in self.settings)

    @contextmanager
    def full(self) -> Iterator[None]:
        """A context with products in float32."""
        with self._lock:
            if not self._regions:
                self._allowed = self.values
            self._regions += 1
            self._own.regions = self._own_regions + 1
            self._raise()
        try:
            yield
        finally:
            with self._lock:
                self._regions -= 1
                self._own.regions -= 1
                if not self._regions:
                    self._set(self._allowed)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A context within one of :meth:`full` with products as they were before.

        Where another one is open there is no going back, which is slower and no less exact.
        """
        with self._lock:
            alone = self._regions == self._own_regions == 1
            if alone:
                self._set(self._allowed)
        try:
            yield
        finally:
            if alone:
                with self._lock:
                    self._raise()

    @property
    def _own_regions(self) -> int:
        """The open regions of this thread."""
        count: int = getattr(self._own, "regions", 0)
        return count

    def _raise(self) -> None:
        lowered = ("tf32", "bf16")
        self._set(["ieee" if value in lowered else value for value in self.values])

    def _set(self, values: Sequence[str]) -> None:
        for setting, value in zip(self.settings, values, strict=True):
            if setting.value != value:
                setting.value = value


class Setting(Protocol):
    """One of torch's settings of float32 products."""

    value: str
    """``"ieee"``, ``"tf32"``, ``"bf16"``, or ``"none"``: that of the setting above this one."""


class _Fp32Precision:
    """A setting of torch 2.9 and later.

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
        # a value that came from the setting above goes on coming from there
        self.holder.fp32_precision = "none"
        if self.holder.fp32_precision != value:
            self.holder.fp32_precision = value


class _Matmul:
    """The setting of all products of matrices, before torch 2.9."""

    NAMES: ClassVar = {"highest": "ieee", "high": "tf32", "medium": "bf16"}

    @property
    def value(self) -> str:
        value: str = self.NAMES[torch.get_float32_matmul_precision()]
        return value

    @value.setter
    def value(self, value: str) -> None:
        (name,) = (name for name, named in self.NAMES.items() if named == value)
        torch.set_float32_matmul_precision(name)


class _Convolution:
    """The setting of convolutions on CUDA, before torch 2.9."""

    @property
    def value(self) -> str:
        return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"

    @value.setter
    def value(self, value: str) -> None:
        torch.backends.cudnn.allow_tf32 = value == "tf32"


def _found_products() -> dict[str, Products]:
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return {"cuda": Products([_Convolution(), _Matmul()]), "cpu": Products([_Matmul()])}
    on_cuda = [_Fp32Precision(holder) for holder in (backends.cudnn.conv, backends.cuda.matmul)]
    on_cpu = [_Fp32Precision(holder) for holder in (backends.mkldnn.conv, backends.mkldnn.matmul)]
    return {"cuda": Products(on_cuda), "cpu": Products(on_cpu)}


_PRODUCTS = _found_products()
_NONE = Products()


def products_on(kind: str) -> Products:
    """The settings for a kind of device."""
    return _PRODUCTS.get(kind, _NONE)
