"""Flows to files and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import NonFiniteWeightError, update_norms
from .contraction import warn_unless_contraction
from .decoding import Decoder
from .encoding import Encoder
from .errors import CorruptCheckpointError, NotRebuildableError
from .files import Path_, about, read, write
from .names import by_name, check_own_classes
from .structure import (
    apply_settings,
    check_alike,
    fill,
    first_names,
    named_tensors,
    settings,
)


def save(flow: nn.Module, path: Path_, *, notes: Mapping[str, str] | None = None) -> None:
    """Save a flow: how it is made, its settings, its parameters and its buffers.

    The file is a safetensors file, which holds no code. A crash on the way leaves the file that
    was there before whole.

    Args:
        flow: a transform or a conditional transform, or any other module of this package.
        path: the file, by custom ``name.safetensors``.
        notes: what else to say of it, for instance the data it was trained on and its bits/dim;
            :func:`pyro_resflow.checkpoints.info` shows them.

    Raises:
        NotRebuildableError: if the flow could not be made again from a file, saying why.
        OSError: if the file cannot be written.

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
        raise NotRebuildableError(
            f"flow: expected a transform that is a module, got {type(flow).__name__}."
        )
    with suppress(NonFiniteWeightError):  # a flow that has diverged can be saved all the same
        update_norms(flow)
    named = named_tensors(flow)
    if any(tensor.is_meta for tensor in named.values()):
        raise NotRebuildableError("flow: it is on the meta device, where tensors have no values.")
    encoder = Encoder()
    node = encoder.encode(flow)
    rebuilt = _rebuilt(node, encoder)
    check_alike(flow, rebuilt)  # so that nothing is saved that would not load
    description = {
        "flow": node,
        "settings": settings(flow, rebuilt, encoder),
        "training": flow.training,
        "notes": {str(name): str(text) for name, text in (notes or {}).items()},
        "torch": torch.__version__,
    }
    first = first_names(named)
    state = {name: named[name] for name in first.values()}
    write(path, description, {**state, **encoder.tensors})


def _rebuilt(node: Any, encoder: Encoder) -> nn.Module:
    """The flow that would be loaded, its tensors apart.

    Raises:
        NotRebuildableError: if a constructor cannot be called again with what it was given.
    """
    arguments = {name: tensor.detach().cpu() for name, tensor in encoder.tensors.items()}
    try:
        with undisturbed(torch.device("cpu")):
            return Decoder(arguments, encoder.own).decode(node, "flow")
    except CorruptCheckpointError as error:
        raise NotRebuildableError(f"it cannot be made again as it was: {error}") from error


def load(
    path: Path_,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    classes: Iterable[type] = (),
    certify: bool = True,
) -> Any:
    """Load a flow that :func:`save` has saved.

    Loading runs no code from the file: it makes objects of this package's classes, of a list of
    torch's and Pyro's, and of ``classes``. It draws no random numbers.

    Args:
        path: the file.
        device: where to put the flow; default: torch's default device.
        dtype: floating-point type to convert it to; default: the one it was saved in.
        classes: the classes of your own that are part of the flow.
        certify: look whether the networks are contractions, as their norms in the file say, and
            warn if not. For flows of some ten million parameters this takes longer than reading.

    Returns:
        The flow, in the mode, of training or of evaluation, in which it was saved.

    Warns:
        ContractionWarning: for a network that is no contraction; see ``certify``.

    Raises:
        CorruptCheckpointError: for a file that is truncated, damaged or not of this format.
        UnknownVersionError: for a format version that this release cannot read.
        UnknownClassError: for a class of your own that is not in ``classes``.
        TensorMismatchError: if a tensor is missing, surplus or of another shape.
        OSError: if there is no such file, or it cannot be read.

    Example:
        See :func:`save`.
    """
    own = by_name(classes)
    device = torch.device(device) if device is not None else torch.get_default_device()
    description, tensors = read(path)
    with about(path), undisturbed(device):
        check_own_classes(description, own)
        flow = _made(description, tensors, own, device, dtype)
        flow.to(device=device, dtype=dtype)
    if certify:
        warn_unless_contraction(flow, path)
    return flow


def _made(
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    own: Mapping[str, type],
    device: torch.device,
    dtype: torch.dtype | None,
) -> nn.Module:
    arguments = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
        if name.startswith("#")
    }
    state = {name: each for name, each in tensors.items() if name not in arguments}
    decoder = Decoder(arguments, own)
    flow = decoder.decode(description["flow"], "flow")
    if not isinstance(flow, nn.Module):
        raise CorruptCheckpointError(f"flow: expected a module, got {type(flow).__name__}.")
    if not all(isinstance(each, dict) for each in description["settings"].values()):
        raise CorruptCheckpointError("settings: expected names and values for each module.")
    found = {
        path: {name: decoder.decode(node, f"settings of {path}") for name, node in each.items()}
        for path, each in description["settings"].items()
    }
    apply_settings(flow, found)
    fill(flow, state)
    return flow.train(description["training"])


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Modules made within are on the device, and draw no random numbers from those to come."""
    accelerators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(accelerators), torch.inference_mode(False), device:
        yield
