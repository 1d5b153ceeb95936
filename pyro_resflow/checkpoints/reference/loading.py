"""Checkpoints of the reference implementation of Residual Flows, as flows of this package."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...flows import ResidualFlow
from ...nn.lipschitz.update import trust_norms
from ..budget import AllocationBudget
from ..dtypes import FLOATING, check_floating
from ..errors import (
    ContractionWarning,
    CorruptCheckpointError,
    NoChecksumWarning,
    TensorMismatchError,
    UnsupportedFlowError,
)
from ..limits import Limits
from ..norm_check import complaint
from ..opening import Path_, reading, size_of
from ..saving import undisturbed, usable
from ..structure import check_shapes
from ..texts import BITS, quoted, shown_path
from .architecture import architecture
from .counterparts import Counterpart, Shapes, counterparts
from .records import StandIn, StoredTensor
from .torch_files import TorchFile

Records = Mapping[str, StoredTensor]

UNCHECKED = (
    "the format of files before torch 1.6 has no checksums, so that damage to this one may have "
    "gone unnoticed. Compare the file with its source, or the flow's bits/dim with the published."
)
"""What is said of a file in that format."""

COUNTS = frozenset({"initialized", "last_n_samples", "spatial_dims"})
"""Buffers of whole numbers; all other tensors are of floating-point ones."""


def load_reference(
    path: Path_,
    *,
    ema: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    certify: bool = True,
    limits: Limits | None = None,
) -> ResidualFlow:
    """Load a checkpoint of the reference implementation of Residual Flows.

    Such files are written by ``train_img.py`` of https://github.com/rtqichen/residual-flows; the
    published ``cifar10``, ``mnist``, ``imagenet32``, ``imagenet64`` and ``celebahq`` models are.
    The flow is built from the options in the file and computes what the reference computes from
    it: the latent vector ``flow.inv(x)``, in the same order, and the log-determinant. Estimator
    and solver are this package's defaults; see :func:`pyro_resflow.transforms.set_logdet`.

    The file is a pickle, and none of what it names is run, see ``SECURITY.md``. Files that torch
    has written before release 1.6, or with ``_use_new_zipfile_serialization=False``, have no
    checksums: a damaged one can load as another flow, and a warning says so. Zip files, which
    torch writes since, have one for each tensor.

    Args:
        path: the file.
        ema: take the exponential moving average of the parameters, which the reference evaluates
            and samples with, or the parameters themselves.
        device: where to put the flow; default: torch's default device.
        dtype: floating-point type of the flow; default: float32, as in the file.
        certify: see :func:`pyro_resflow.checkpoints.load`. The reference measures norms from
            below, and those of the moving average not at all before it saves.
        limits: what the file may ask for; default: ``Limits()``.

    Returns:
        The flow from noise to images on [0, 1].

    Warns:
        ContractionWarning: for a network that is no contraction; see ``certify``.
        NoChecksumWarning: for a file of the format that has none.

    Raises:
        UnsafePickleError: if the file names anything that has no part in such a checkpoint.
        UnsupportedFlowError: for options whose flow is not built here, naming them.
        TensorMismatchError: if a tensor is missing, surplus or of another shape or type.
        CorruptCheckpointError: for a file that is truncated, damaged or no such checkpoint.
        LimitError: for a file that asks for more than its limits.
        ValueError: if ``dtype`` is no floating-point type.
        OSError: if there is no such file, or it cannot be read.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019.
    """
    found = loaded(path, ema=ema, device=device, dtype=dtype, certify=certify, limits=limits)
    return found.flow


def loaded(
    path: Path_,
    *,
    ema: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    certify: bool = True,
    limits: Limits | None = None,
) -> Loaded:
    """See :func:`load_reference`."""
    device = usable(device)
    check_floating(dtype)
    with reading(path) as opened:
        file = TorchFile(opened, limits)
        saved = Saved.of(file.content)
        allocation = (limits or Limits()).allocation(size_of(opened))
        flow = _filled(file, saved, ema, dtype or torch.float32, allocation)
        flow.to(device)
        what = complaint(flow) if certify else None
    if not file.has_checksums:
        warnings.warn(f"{shown_path(path)}: {UNCHECKED}", NoChecksumWarning, stacklevel=3)
    if what is not None:
        warnings.warn(f"{shown_path(path)}: {what}", ContractionWarning, stacklevel=3)
    return Loaded(flow, saved)


def _filled(
    file: TorchFile, saved: Saved, ema: bool, dtype: torch.dtype, allocation: int
) -> ResidualFlow:
    """The flow of a file, on the CPU."""
    with undisturbed(torch.device("cpu")):
        built = architecture(saved.args)
        try:
            with AllocationBudget(allocation):
                flow = built.build().to(dtype=dtype)
        except CorruptCheckpointError:
            raise
        except ValueError as error:
            raise UnsupportedFlowError(f"args: no flow can be built of them, {error}") from error
        parts = counterparts(flow, built)
        records = saved.checked(parts, ema=ema)
        flow.load_state_dict(_converted(file, parts, records, dtype))
        trust_norms(flow)  # the reference's, which end sooner than ours
    return flow


class Saved(NamedTuple):
    """What the training script saves, the optimizer's state aside.

    Attributes:
        args: its options, by name; of those that are no numbers or texts, what they are.
        state: the model's state, by name.
        moving_average: of the parameters, by name; ``None`` if there is none.
        test_bpd: bits per dimension on test data, if it says.
    """

    args: dict[str, Any]
    state: Records
    moving_average: Records | None
    test_bpd: Any

    @classmethod
    def of(cls, content: Any) -> Saved:
        """The parts of a file's content.

        Raises:
            CorruptCheckpointError: naming what is not there.
        """
        if not isinstance(content, dict) or not isinstance(content.get("args"), StandIn):
            raise CorruptCheckpointError(
                "it is no checkpoint of the reference implementation's train_img.py: there are no "
                "options, 'args', in it."
            )
        average = content.get("ema")
        shadow = average.state.get("shadow_params") if isinstance(average, StandIn) else None
        options = content["args"].state.items()
        return cls(
            {name: _plain(value) for name, value in options if isinstance(name, str)},
            _records("state_dict", content.get("state_dict")),
            _records("ema.shadow_params", shadow) if shadow else None,
            _plain(content.get("test_bpd")),
        )

    def checked(self, parts: Sequence[Counterpart], *, ema: bool) -> Records:
        """The records of all parameters and buffers, after a check of their names and shapes.

        Raises:
            UnsupportedFlowError: if there is no moving average where one is asked for.
            TensorMismatchError: if a tensor is missing, surplus or of another shape.
        """
        parameters: Shapes = {}
        buffers: Shapes = {}
        for part in parts:
            parameters |= {f"{part.name}.{name}": s for name, s in part.parameters().items()}
            buffers |= {f"{part.name}.{name}": s for name, s in part.buffers().items()}
        check_shapes("the tensors of state_dict", self.state, {**parameters, **buffers})
        if not ema:
            return self.state
        if self.moving_average is None:
            raise UnsupportedFlowError("ema: there is no moving average in it; use ema=False.")
        check_shapes("the tensors of ema.shadow_params", self.moving_average, parameters)
        return {**self.state, **self.moving_average}


class Loaded(NamedTuple):
    """A flow, and what its file says beside it."""

    flow: ResidualFlow
    saved: Saved


def _records(what: str, found: Any) -> Records:
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"there is no {what} in it.")
    for name, record in found.items():
        if not isinstance(name, str) or not isinstance(record, StoredTensor):
            raise CorruptCheckpointError(f"{what}: {quoted(name)} is no tensor.")
    return found


def _plain(value: Any) -> Any:
    """A number or a text; of anything else, what it is."""
    is_long = isinstance(value, int) and value.bit_length() > BITS
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return value if is_plain and not is_long else quoted(value)


def _converted(
    file: TorchFile, parts: Sequence[Counterpart], records: Records, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The state of our flow.

    Raises:
        CorruptCheckpointError: for values that are not finite.
        TensorMismatchError: for a tensor of another type.
        UnsupportedFlowError: for a model that has not been trained.
    """
    state: dict[str, Tensor] = {}
    for part in parts:
        there = {}
        for name in (*part.parameters(), *part.buffers()):
            record = records[f"{part.name}.{name}"]
            if name not in COUNTS and record.storage.dtype not in FLOATING:
                raise TensorMismatchError(
                    f"{part.name}.{name} is of {record.storage.dtype}, expected torch.float32."
                )
            there[name] = tensor = file.tensor(record).double()
            if not bool(tensor.isfinite().all()):
                raise CorruptCheckpointError(
                    f"{part.name}.{name} holds nan or infinite values; the training had diverged."
                )
        if not bool(there.get("initialized", torch.tensor(True))):
            raise UnsupportedFlowError(f"{part.name} has not seen a batch: it was never trained.")
        for name, tensor in part.converted(there).items():
            converted = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if not bool(converted.isfinite().all()):
                raise CorruptCheckpointError(f"{part.name}: its {name} has no value in {dtype}.")
            state[f"{part.path}.{name}"] = converted
    return state
