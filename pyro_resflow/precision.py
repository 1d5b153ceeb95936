"""The precision that networks run in, and how to leave it for a while.

Two kinds of settings lower it. Autocast lets whole layers run in half precision. And products of
float32 matrices and convolutions may be taken in TF32 or bfloat16, with 10 or 7 bits of mantissa:
torch does so by default for convolutions on CUDA, and for matrices after
``torch.set_float32_matmul_precision("high")``. An inverse need not converge to seven digits in
these, and no norm is known to more than three.

Autocast is each thread's own, the other settings are those of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class HalfPrecisionError(ValueError):
    """Parameters are in half precision, in which neither norms nor inverses nor densities are."""


def refuse_half_precision(module: nn.Module) -> None:
    """Raise if a module's parameters are in half precision; the first stands for all.

    Raises:
        HalfPrecisionError: naming the module, the type and the remedies.
    """
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.dtype in HALF:
        raise HalfPrecisionError(
            f"{type(module).__name__}: expected parameters in float32 or float64, got "
            f"{parameter.dtype}. Norms, inverses and log-densities need more digits than half "
            "precision has. Call float() on the flow, and for speed compute under torch.autocast, "
            "in Lightning by precision='bf16-mixed' in place of 'bf16-true'."
        )


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What autocast computes in on the tensor's device, ``None`` where it is off."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def precision(tensor: Tensor) -> tuple[object, ...]:
    """All settings that operations on the tensor's device heed, to be compared."""
    return autocast_dtype(tensor), *PRODUCTS.heeded()


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
    with _autocast(kind, None), PRODUCTS.full():
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
        with _autocast(self.kind, self.autocast), PRODUCTS.allowed():
            yield


def _autocast(kind: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    if dtype is None:
        enabled = torch.is_autocast_enabled(kind)
        return torch.autocast(kind, enabled=False) if enabled else nullcontext()
    return torch.autocast(kind, dtype=dtype)


class Setting(Protocol):
    """One of torch's settings of float32 products."""

    full: ClassVar[str]
    """The value by which they are taken in float32."""

    value: str

    def is_lowered(self) -> bool:
        """Whether they are taken in less."""


class Products:
    """The process's settings of float32 products.

    Several threads, and calls within calls, may ask for full precision at the same time: it lasts
    until the last of them is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions = 0
        self._own = threading.local()
        self._settings: list[Setting] = []
        self._allowed: tuple[str, ...] = ()

    def heeded(self) -> tuple[str, ...]:
        """The values that this thread has asked for, or was given."""
        with self._lock:
            if self._regions and not self._own_regions:
                return self._allowed
            return _values(_settings())

    @contextmanager
    def full(self) -> Iterator[None]:
        """A context with products in float32."""
        with self._lock:
            if not self._regions:
                self._settings = _settings()
                self._allowed = _values(self._settings)
            self._regions += 1
            self._own.regions = self._own_regions + 1
        try:
            with self._lock:
                self._raise()
            yield
        finally:
            with self._lock:
                self._regions -= 1
                self._own.regions -= 1
                if not self._regions:
                    self._restore()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A context within one of :meth:`full` with products as they were before.

        Where another one is open there is no going back, which is slower and no less exact.
        """
        with self._lock:
            alone = self._regions == self._own_regions == 1
            if alone:
                self._restore()
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
        for setting in self._settings:
            if setting.is_lowered():
                setting.value = setting.full

    def _restore(self) -> None:
        for setting, value in zip(self._settings, self._allowed, strict=True):
            if setting.value != value:
                setting.value = value


PRODUCTS = Products()


class _Matrices:
    """Of matrices, on every device, by the older of torch's interfaces."""

    full: ClassVar[str] = "highest"

    @property
    def value(self) -> str:
        return torch.get_float32_matmul_precision()

    @value.setter
    def value(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)

    def is_lowered(self) -> bool:
        return self.value != self.full


class _Convolutions:
    """Of convolutions on CUDA, by the older of torch's interfaces."""

    full: ClassVar[str] = "False"

    @property
    def value(self) -> str:
        return str(torch.backends.cudnn.allow_tf32)

    @value.setter
    def value(self, value: str) -> None:
        torch.backends.cudnn.allow_tf32 = value == "True"

    def is_lowered(self) -> bool:
        return self.value != self.full


class _Operation:
    """Of one kind of operation on one kind of device, by the newer interface (torch 2.9).

    Args:
        holder: the object with the attribute ``fp32_precision``.
    """

    full: ClassVar[str] = "ieee"

    def __init__(self, holder: Any) -> None:
        self.holder = holder

    @property
    def value(self) -> str:
        value: str = self.holder.fp32_precision
        return value

    @value.setter
    def value(self, value: str) -> None:
        # a value that came from the setting of all operations goes on coming from there
        self.holder.fp32_precision = "none"
        if self.holder.fp32_precision != value:
            self.holder.fp32_precision = value

    def is_lowered(self) -> bool:
        return self.value in ("tf32", "bf16")


def _settings() -> list[Setting]:
    """All of them, by the older interface unless the newer one has been used.

    torch refuses to read the older one where the newer one says otherwise, and what reads it, as
    torch's compiler does, would fail where the newer one alone is changed.
    """
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):  # before torch 2.9
        return [_Matrices(), _Convolutions()]
    above = (backends.fp32_precision, backends.cudnn.fp32_precision)
    on_cpu = [_Operation(backends.mkldnn.conv), _Operation(backends.mkldnn.rnn)]
    if set(above) == {"none"} and _are_readable(_Matrices(), _Convolutions()):
        return [_Matrices(), _Convolutions(), *on_cpu]
    matrices = [_Operation(backends.cuda.matmul), _Operation(backends.mkldnn.matmul)]
    return [*matrices, _Operation(backends.cudnn.conv), _Operation(backends.cudnn.rnn), *on_cpu]


def _are_readable(*settings: Setting) -> bool:
    try:
        _values(settings)
    except RuntimeError:
        return False
    return True


def _values(settings: Sequence[Setting]) -> tuple[str, ...]:
    return tuple(setting.value for setting in settings)
