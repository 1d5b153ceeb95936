"""The precision that networks run in, and regions of full precision.

Two kinds of settings lower the precision. Autocast runs whole layers in half precision. Also,
torch may compute float32 matrix products and convolutions in TF32 or bfloat16, with 10 or 7 bits
of mantissa: by default for convolutions on CUDA, and for matrices after
``torch.set_float32_matmul_precision("high")``. With so few bits an inverse need not converge to
seven digits, and a norm is known to three at most.

Each thread has its own autocast; the other settings belong to the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .walk import first_parameter

HALF = (torch.float16, torch.bfloat16)


class HalfPrecisionError(ValueError):
    """A flow's parameters or its input are in half precision, too inaccurate for densities."""


def refuse_half_precision(module: nn.Module) -> None:
    """Raise if a module's first parameter is in half precision.

    Raises:
        HalfPrecisionError: naming the module, the type and the remedies.
    """
    parameter = first_parameter(module)
    if parameter is not None and parameter.dtype in HALF:
        raise HalfPrecisionError(
            f"{type(module).__name__}: expected parameters in float32 or float64, got "
            f"{parameter.dtype}. Norms, inverses and log-densities need more digits than half "
            "precision has. Call float() on the flow. For speed, compute under torch.autocast, in "
            "Lightning with precision='bf16-mixed' in place of 'bf16-true'."
        )


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype of autocast on the tensor's device, ``None`` where autocast is off."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def precision(tensor: Tensor) -> tuple[object, ...]:
    """All precision settings for the tensor's device, to compare those of two passes."""
    return autocast_dtype(tensor), *PRODUCTS.requested()


_AS_IT_IS: AbstractContextManager[object] = nullcontext()


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which operations keep the precision of their inputs.

    Inside a compiled function it only disables autocast, because the function cannot change the
    settings of the process.

    Args:
        tensor: a tensor on the device of the operations.
    """
    lowered = autocast_dtype(tensor) is not None
    kind = tensor.device.type
    if torch.compiler.is_compiling():
        return torch.autocast(kind, enabled=False) if lowered else _AS_IT_IS
    return _full(kind) if lowered or not PRODUCTS.are_full(kind) else _AS_IT_IS


@contextmanager
def _full(kind: str) -> Iterator[None]:
    with _autocast(kind, None), PRODUCTS.full():
        yield


@dataclass(frozen=True)
class SurroundingPrecision:
    """The precision around a region of full precision, which parts of the region can restore.

    Attributes:
        kind: the type of device, for instance ``"cpu"``.
        autocast: the dtype of autocast, ``None`` where it was off.
    """

    kind: str
    autocast: torch.dtype | None

    @classmethod
    def of(cls, tensor: Tensor) -> SurroundingPrecision:
        """The precision in force now, on the tensor's device."""
        return cls(tensor.device.type, autocast_dtype(tensor))

    def kept_by(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Wrap a function to run in this precision inside the region of full precision.

        The result is the function itself if both precisions are the same.
        """
        if self.autocast is None and not PRODUCTS.own.count:
            return function

        def in_its_precision(x: Tensor) -> Tensor:
            with self._restored():
                return function(x)

        return in_its_precision

    def in_force(self) -> AbstractContextManager[object]:
        """A context with this autocast, and with the products that the process allows."""
        if self.autocast is None and not PRODUCTS.own.count:
            return _autocast(self.kind, None)
        return self._restored()

    @contextmanager
    def _restored(self) -> Iterator[None]:
        with _autocast(self.kind, self.autocast), PRODUCTS.allowed():
            yield


def _autocast(kind: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(kind):
        return _AS_IT_IS
    if dtype is None:
        enabled = torch.is_autocast_enabled(kind)
        return torch.autocast(kind, enabled=False) if enabled else _AS_IT_IS
    return torch.autocast(kind, dtype=dtype)


@dataclass(frozen=True)
class Setting:
    """One of torch's settings of float32 products.

    Attributes:
        read: returns its value.
        write: sets its value.
        full: the value that keeps products in float32.
        lowered: the values that lower their precision.
        device: the type of device that it applies to, ``None`` for all.
    """

    read: Callable[[], Any]
    write: Callable[[Any], None]
    full: object
    lowered: tuple[object, ...]
    device: str | None = None


class _OwnRegions(threading.local):
    """The number of regions that each thread has open."""

    count = 0


class Products:
    """The process's settings of float32 products.

    Several threads and nested calls may request full precision at the same time. It ends when the
    last of them is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions = 0
        self.own = _OwnRegions()
        self._settings: Sequence[Setting] = ()
        self._allowed: tuple[object, ...] = ()

    def requested(self) -> tuple[object, ...]:
        """The values for this thread, even while another thread has raised them."""
        with self._lock:
            if self._regions and not self.own.count:
                return self._allowed
            return _values(_settings())

    def are_full(self, kind: str) -> bool:
        """Whether no region is open, and products on a type of device are in float32."""
        with self._lock:
            if self._regions:  # another thread's region may end, and lower them, at any moment
                return False
            for setting in _settings():
                if setting.device in (None, kind) and setting.read() in setting.lowered:
                    return False
            return True

    @contextmanager
    def full(self) -> Iterator[None]:
        """A context with products in float32."""
        with self._lock:
            if not self._regions:
                self._settings = _settings()
                self._allowed = _values(self._settings)
            self._regions += 1
            self.own.count += 1
        try:
            with self._lock:
                self._raise_to_full()
            yield
        finally:
            with self._lock:
                self._regions -= 1
                self.own.count -= 1
                if not self._regions:
                    self._restore()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A context inside one of :meth:`full` that restores the settings from before it.

        While another region is open, products stay in float32, which is slower but accurate.
        """
        with self._lock:
            alone = self._regions == self.own.count == 1
            if alone:
                self._restore()
        try:
            yield
        finally:
            if alone:
                with self._lock:
                    self._raise_to_full()

    def _raise_to_full(self) -> None:
        for setting in self._settings:
            if setting.read() in setting.lowered:
                setting.write(setting.full)

    def _restore(self) -> None:
        for setting, value in zip(self._settings, self._allowed, strict=True):
            if setting.read() != value:
                setting.write(value)


PRODUCTS = Products()


def _operation(holder: Any, device: str) -> Setting:
    """The setting of one operation on one kind of device, in the interface of torch 2.9."""
    read = partial(getattr, holder, "fp32_precision")
    return Setting(read, partial(_write, holder), "ieee", ("tf32", "bf16"), device)


def _write(holder: Any, value: str) -> None:
    # a value inherited from the setting of all operations stays inherited
    holder.fp32_precision = "none"
    if holder.fp32_precision != value:
        holder.fp32_precision = value


_BACKENDS: Any = torch.backends

_OLDER = (
    Setting(
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
        "highest",
        ("high", "medium"),
    ),
    Setting(
        partial(getattr, _BACKENDS.cudnn, "allow_tf32"),
        partial(setattr, _BACKENDS.cudnn, "allow_tf32"),
        False,
        (True,),
        "cuda",
    ),
)
"""Products of matrices on every device, and convolutions on CUDA."""

_HAS_NEWER = hasattr(_BACKENDS.cudnn, "conv")  # since torch 2.9

_NEWER = (
    (
        _operation(_BACKENDS.cuda.matmul, "cuda"),
        _operation(_BACKENDS.mkldnn.matmul, "cpu"),
        _operation(_BACKENDS.cudnn.conv, "cuda"),
        _operation(_BACKENDS.cudnn.rnn, "cuda"),
    )
    if _HAS_NEWER
    else ()
)

_NEWER_ALONE = (
    (_operation(_BACKENDS.mkldnn.conv, "cpu"), _operation(_BACKENDS.mkldnn.rnn, "cpu"))
    if _HAS_NEWER
    else ()
)
"""Operations that only the newer interface has a setting for."""


def _settings() -> Sequence[Setting]:
    """All settings, by the older interface unless the newer one has been used.

    torch refuses to read the older interface where the newer one contradicts it. Readers of the
    older one, such as torch's compiler, would fail if only the newer one were changed.
    """
    if not _HAS_NEWER:
        return _OLDER
    if _BACKENDS.fp32_precision == _BACKENDS.cudnn.fp32_precision == "none":
        try:
            for setting in _OLDER:
                setting.read()
        except RuntimeError:
            return _NEWER + _NEWER_ALONE
        return _OLDER + _NEWER_ALONE
    return _NEWER + _NEWER_ALONE


def _values(settings: Sequence[Setting]) -> tuple[object, ...]:
    return tuple([setting.read() for setting in settings])
