"""Flows to files and back."""

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
from .norm_check import complaint
from .opening import Path_, reading, size_of
from .structure import (
    apply_settings,
    check_alike,
    fill,
    first_names,
    named_tensors,
    settings,
)
from .texts import shown_path


def save(
    flow: nn.Module,
    path: Path_,
    *,
    notes: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> None:
    """Save a flow: how it is made, its settings, its parameters and its buffers.

    The file is a safetensors file, which holds no code; the same flow gives the same bytes. A
    crash or a full disk leaves the file that was there before whole. What a killed process has
    left half written in the folder is removed.

    Args:
        flow: a transform or a conditional transform, or any other module of this package.
        path: the file, by custom ``name.safetensors``.
        notes: what else to say of it, for instance the data it was trained on and its bits/dim;
            :func:`pyro_resflow.checkpoints.info` shows them.
        limits: what :func:`load` will be given; default: ``Limits()``.

    Raises:
        NotRebuildableError: if the flow could not be made again from a file, saying why.
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
            remedy = " Save its transform, and build the distribution around it again."
        raise NotRebuildableError(
            f"flow: expected a transform that is a module, got {type(flow).__name__}.{remedy}"
        )
    with suppress(NonFiniteWeightError):  # a flow that has diverged can be saved all the same
        update_norms(flow)
    limits = limits or Limits()
    named = named_tensors(flow)
    if any(tensor.is_meta for tensor in named.values()):
        raise NotRebuildableError("flow: it is on the meta device, where tensors have no values.")
    encoder = Encoder()
    node = encoder.encode(flow)
    state = {name: named[name] for name in first_names(named).values()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    rebuilt = _rebuilt(node, encoder, limits.allocation(size))
    check_alike(flow, rebuilt)  # so that nothing is saved that would not load
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
    """The flow that would be loaded, its tensors apart.

    Raises:
        NotRebuildableError: if a constructor cannot be called again with what it was given.
    """
    arguments = {name: tensor.detach().cpu() for name, tensor in encoder.tensors.items()}
    try:
        with undisturbed(torch.device("cpu")), AllocationBudget(allocation):
            return Decoder(arguments, encoder.own).decode(node, "flow")
    except LimitError as error:
        raise NotRebuildableError(f"load would refuse the file: {error}") from error
    except CorruptCheckpointError as error:
        raise NotRebuildableError(f"it cannot be made again as it was: {error}") from error


def load(
    path: Path_,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    classes: Iterable[type] = (),
    certify: bool = True,
    limits: Limits | None = None,
) -> Any:
    """Load a flow that :func:`save` has saved.

    Loading runs no code from the file: it makes objects of this package's classes, of a list of
    torch's and Pyro's, and of ``classes``. It draws no random numbers. The file is opened once:
    while another takes its place, one of the two is loaded.

    Args:
        path: the file.
        device: where to put the flow; default: torch's default device.
        dtype: floating-point type to convert it to; default: the one it was saved in.
        classes: the classes of your own that are part of the flow.
        certify: look whether the networks are contractions, as their norms in the file say, and
            warn if not. For flows of some ten million parameters this takes longer than reading.
        limits: what the file may ask for; default: ``Limits()``.

    Returns:
        The flow, in the mode, of training or of evaluation, in which it was saved.

    Warns:
        ContractionWarning: for a network that is no contraction; see ``certify``.

    Raises:
        CorruptCheckpointError: for a file that is truncated, damaged or not of this format.
        UnknownVersionError: for a format version that this release cannot read.
        UnknownClassError: for a class of your own that is not in ``classes``.
        TensorMismatchError: if a tensor is missing, surplus or of another shape or type.
        LimitError: for a file that asks for more than its limits.
        ValueError: if ``dtype`` is no floating-point type.
        OSError: if there is no such file, or it cannot be read.

    Example:
        See :func:`save`.
    """
    own = by_name(classes)
    device = usable(device)
    check_floating(dtype)
    limits = limits or Limits()
    with reading(path) as file:
        description, tensors = read(file, limits)
        check_own_classes(description, own)
        allocation = limits.allocation(size_of(file))
        with undisturbed(device):
            flow = _made(description, tensors, own, device, dtype, allocation)
            flow.to(device=device, dtype=dtype)
        what = complaint(flow) if certify else None
    if what is not None:
        warnings.warn(f"{shown_path(path)}: {what}", ContractionWarning, stacklevel=2)
    return flow


def _made(
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
    fill(flow, state)
    return flow.train(description["training"])


def usable(device: torch.device | str | None) -> torch.device:
    """The device to load to; if it cannot be used, torch says why before a file is opened."""
    found = torch.device(device) if device is not None else torch.get_default_device()
    torch.empty(0, device=found)
    return found


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Modules made within are on the device, and draw no random numbers from those to come."""
    accelerators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(accelerators), torch.inference_mode(False), device:
        yield
