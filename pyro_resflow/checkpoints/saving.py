"""Save flows to files and load them again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..nn import NonFiniteWeightError, update_norms
from .budget import AllocationBudget
from .decoding import Decoder
from .dtypes import check_floating
from .encoding import Encoder
from .errors import (
    ContractionWarning,
    CorruptCheckpointError,
    LimitError,
    NotRebuildableError,
)
from .files import check_description, read, write
from .limits import Limits
from .names import by_name, check_own_classes
from .norm_check import norm_warning
from .opening import PathLike, reading, size_of
from .structure import (
    apply_settings,
    check_alike,
    first_names,
    load_tensors,
    named_tensors,
    settings,
)
from .texts import shown_path


def save(
    flow: nn.Module,
    path: PathLike,
    *,
    notes: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> None:
    """Save a flow: its constructor arguments, settings, parameters and buffers.

    The file is a safetensors file, which contains no code; the same flow gives the same bytes. If
    the program crashes or the disk is full, an existing file stays intact. Partial files that
    killed processes left in the folder are removed.

    Args:
        flow: a transform, a conditional transform or any other module of this package.
        path: the file, by convention ``name.safetensors``.
        notes: strings to store with the flow, for instance its training data and its bits/dim;
            :func:`pyro_resflow.checkpoints.info` shows them.
        limits: the limits that :func:`load` will use; default: ``Limits()``.

    Raises:
        NotRebuildableError: if the flow cannot be rebuilt from a file; the message says why.
        OSError: if the file cannot be written, for instance to a full disk.

    Example:
        >>> import tempfile, torch
        >>> from pyro_resflow import checkpoints, residual_flow
        >>> flow = residual_flow(2, blocks=2)
        >>> x = torch.randn(7, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints.save(flow, f"{folder}/flow.safetensors")
        ...     loaded = checkpoints.load(f"{folder}/flow.safetensors")
        >>> torch.equal(loaded(x), flow(x))
        True
    """
    if not isinstance(flow, nn.Module):
        remedy = ""
        if isinstance(flow, Distribution):
            remedy = " Save its transform, and build the distribution from it after loading."
        raise NotRebuildableError(
            f"flow: expected a transform that is a module, got {type(flow).__name__}.{remedy}"
        )
    with suppress(NonFiniteWeightError):  # a flow that has diverged can still be saved
        update_norms(flow)
    limits = limits or Limits()
    named = named_tensors(flow)
    if any(tensor.is_meta for tensor in named.values()):
        raise NotRebuildableError(
            "flow: expected parameters with values, got tensors on the meta device."
        )
    encoder = Encoder()
    node = encoder.encode(flow)
    state = {name: named[name] for name in first_names(named).values()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    rebuilt = _rebuilt(node, encoder, limits.allocation(size))
    check_alike(flow, rebuilt)  # never write a file that would not load
    description = {
        "flow": node,
        "settings": settings(flow, rebuilt, encoder),
        "training": flow.training,
        "notes": {str(name): str(text) for name, text in (notes or {}).items()},
        "torch": torch.__version__,
    }
    try:
        check_description(description, limits)
    except LimitError as error:
        raise NotRebuildableError(f"load would refuse the file: {error}") from error
    write(path, description, {**state, **encoder.tensors})


def _rebuilt(node: Any, encoder: Encoder, allocation: int) -> nn.Module:
    """The flow that would be loaded, without its tensors.

    Raises:
        NotRebuildableError: if a constructor rejects its own arguments.
    """
    arguments = {name: tensor.detach().cpu() for name, tensor in encoder.tensors.items()}
    try:
        with isolated_construction(torch.device("cpu")), AllocationBudget(allocation):
            return Decoder(arguments, encoder.own).decode(node, "flow")
    except LimitError as error:
        raise NotRebuildableError(f"load would refuse the file: {error}") from error
    except CorruptCheckpointError as error:
        raise NotRebuildableError(f"flow: it cannot be rebuilt: {error}") from error


def load(
    path: PathLike,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    classes: Iterable[type] = (),
    certify: bool = True,
    limits: Limits | None = None,
) -> Any:
    """Load a flow that :func:`save` has saved.

    Loading runs no code from the file: it creates objects of this package's classes, of a fixed
    list of torch and Pyro classes, and of ``classes``. It draws no random numbers. The file is
    opened once: if another replaces it meanwhile, one of the two is loaded.

    Args:
        path: the file.
        device: where to put the flow; default: torch's default device.
        dtype: floating-point dtype of the flow; default: the one it was saved in.
        classes: your own classes that the flow uses.
        certify: verify from the stored norms that the networks are contractions, and warn if
            not. For flows of some ten million parameters this takes longer than reading the file.
        limits: limits on the file's contents; default: ``Limits()``.

    Returns:
        The flow, in the training or evaluation mode in which it was saved.

    Warns:
        ContractionWarning: if a network could not be verified; see ``certify``.

    Raises:
        CorruptCheckpointError: for a file that is truncated, damaged or not in this format.
        UnknownVersionError: for a format version that this release cannot read.
        UnknownClassError: for a class of your own that is not in ``classes``.
        TensorMismatchError: for a missing or surplus tensor, or a wrong shape or dtype.
        LimitError: for a file that exceeds ``limits``.
        ValueError: if ``dtype`` is not a floating-point dtype.
        OSError: if the file does not exist or cannot be read.

    Example:
        See :func:`save`.
    """
    own = by_name(classes)
    device = usable_device(device)
    check_floating(dtype)
    limits = limits or Limits()
    with reading(path) as file:
        description, tensors = read(file, limits)
        check_own_classes(description, own)
        allocation = limits.allocation(size_of(file))
        with isolated_construction(device):
            flow = _built(description, tensors, own, device, dtype, allocation)
            flow.to(device=device, dtype=dtype)
        warning = norm_warning(flow) if certify else None
    if warning is not None:
        warnings.warn(f"{shown_path(path)}: {warning}", ContractionWarning, stacklevel=2)
    return flow


def _built(
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    own: Mapping[str, type],
    device: torch.device,
    dtype: torch.dtype | None,
    allocation: int,
) -> nn.Module:
    arguments = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
        if name.startswith("#")
    }
    state = {name: each for name, each in tensors.items() if name not in arguments}
    decoder = Decoder(arguments, own)
    with AllocationBudget(allocation):
        flow = decoder.decode(description["flow"], "flow")
        if not isinstance(flow, nn.Module):
            raise CorruptCheckpointError(f"flow: expected a module, got {type(flow).__name__}.")
        found = {
            path: {n: decoder.decode(e, f"settings of {path}") for n, e in each.items()}
            for path, each in description["settings"].items()
        }
    apply_settings(flow, found)
    load_tensors(flow, state)
    return flow.train(description["training"])


def usable_device(device: torch.device | str | None) -> torch.device:
    """The device to load to. torch raises here, before a file is opened, if it is unavailable."""
    found = torch.device(device) if device is not None else torch.empty(0).device
    torch.empty(0, device=found)
    return found


@contextmanager
def isolated_construction(device: torch.device) -> Iterator[None]:
    """Build modules on a device without advancing the random number generators."""
    accelerators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(accelerators), torch.inference_mode(False), device:
        yield
