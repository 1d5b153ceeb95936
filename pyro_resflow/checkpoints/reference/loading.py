"""Load checkpoints of the reference implementation of Residual Flows."""

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
from ..norm_check import norm_warning
from ..opening import PathLike, reading, size_of
from ..saving import isolated_construction, usable_device
from ..structure import check_shapes
from ..texts import BITS, quoted, shown_path
from .architecture import architecture
from .counterparts import Counterpart, Shapes, counterparts
from .records import StandIn, StoredTensor
from .torch_files import TorchFile

Records = Mapping[str, StoredTensor]

UNCHECKED = (
    "the format of files before torch 1.6 has no checksums, so damage may have gone unnoticed. "
    "Compare the file with its source, or the flow's bits/dim with the published value."
)
"""The warning for a file in that format."""

COUNTS = frozenset({"initialized", "last_n_samples", "spatial_dims"})
"""Integer buffers; all other tensors are floating-point."""


def load_reference(
    path: PathLike,
    *,
    ema: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    certify: bool = True,
    limits: Limits | None = None,
) -> ResidualFlow:
    """Load a checkpoint of the reference implementation of Residual Flows.

    ``train_img.py`` of https://github.com/rtqichen/residual-flows writes such files, among them
    the published ``cifar10``, ``mnist``, ``imagenet32``, ``imagenet64`` and ``celebahq`` models.
    The flow is built from the options in the file and computes the same values as the reference:
    the latent vector ``flow.inv(x)``, in the same order, and the log-determinant. It uses this
    package's default estimator and solver; see :func:`pyro_resflow.transforms.set_logdet`.

    The file is a pickle; loading it runs nothing that it names, see ``SECURITY.md``. Files written
    by torch before release 1.6, or with ``_use_new_zipfile_serialization=False``, have no
    checksums: a damaged one can load as another flow, so a warning is given. Zip files, which
    newer releases write, have a checksum for each tensor.

    Args:
        path: the file.
        ema: load the exponential moving average of the parameters, with which the reference
            evaluates and samples; ``False`` loads the raw parameters.
        device: where to put the flow; default: torch's default device.
        dtype: floating-point dtype of the flow; default: float32, as in the file.
        certify: see :func:`pyro_resflow.checkpoints.load`. The reference estimates norms from
            below, and does not update the norms of the moving average before it saves.
        limits: limits on the file's contents; default: ``Limits()``.

    Returns:
        The flow from noise to images on [0, 1].

    Warns:
        ContractionWarning: if a network could not be verified; see ``certify``.
        NoChecksumWarning: for a file in the format without checksums.

    Raises:
        UnsafePickleError: if the file names anything that does not belong in such a checkpoint.
        UnsupportedFlowError: naming options that this package does not support.
        TensorMismatchError: for a missing or surplus tensor, or a wrong shape or dtype.
        CorruptCheckpointError: for a file that is truncated, damaged or not such a checkpoint.
        LimitError: for a file that exceeds ``limits``.
        ValueError: if ``dtype`` is not a floating-point dtype.
        OSError: if the file does not exist or cannot be read.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019.
    """
    found = loaded(path, ema=ema, device=device, dtype=dtype, certify=certify, limits=limits)
    return found.flow


def loaded(
    path: PathLike,
    *,
    ema: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    certify: bool = True,
    limits: Limits | None = None,
) -> Loaded:
    """Like :func:`load_reference`, but also returns the file's other contents."""
    device = usable_device(device)
    check_floating(dtype)
    with reading(path) as opened:
        file = TorchFile(opened, limits)
        saved = Saved.of(file.content)
        allocation = (limits or Limits()).allocation(size_of(opened))
        flow = _filled(file, saved, ema, dtype or torch.float32, allocation)
        flow.to(device)
        warning = norm_warning(flow) if certify else None
    if not file.has_checksums:
        warnings.warn(f"{shown_path(path)}: {UNCHECKED}", NoChecksumWarning, stacklevel=3)
    if warning is not None:
        warnings.warn(f"{shown_path(path)}: {warning}", ContractionWarning, stacklevel=3)
    return Loaded(flow, saved)


def _filled(
    file: TorchFile, saved: Saved, ema: bool, dtype: torch.dtype, allocation: int
) -> ResidualFlow:
    """The flow of a file, on the CPU."""
    with isolated_construction(torch.device("cpu")):
        built = architecture(saved.args)
        try:
            with AllocationBudget(allocation):
                flow = built.build().to(dtype=dtype)
        except CorruptCheckpointError:
            raise
        except ValueError as error:
            raise UnsupportedFlowError(
                f"args: expected the options of a valid flow, got {error}"
            ) from error
        parts = counterparts(flow, built)
        records = saved.checked(parts, ema=ema)
        flow.load_state_dict(_converted(file, parts, records, dtype))
        trust_norms(flow)  # keep the reference's norms, which it iterates less than we do
    return flow


class Saved(NamedTuple):
    """The contents of a file of the training script, apart from the optimizer's state.

    Attributes:
        args: its options, by name; options other than numbers and strings as a description.
        state: the model's state, by name.
        moving_average: moving average of the parameters, by name; ``None`` if there is none.
        test_bpd: bits per dimension on test data, if stored.
    """

    args: dict[str, Any]
    state: Records
    moving_average: Records | None
    test_bpd: Any

    @classmethod
    def of(cls, content: Any) -> Saved:
        """Read the parts from a file's content.

        Raises:
            CorruptCheckpointError: naming a missing part.
        """
        if not isinstance(content, dict) or not isinstance(content.get("args"), StandIn):
            raise CorruptCheckpointError(
                "not a checkpoint of the reference implementation's train_img.py: it has no "
                "options 'args'."
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
            UnsupportedFlowError: if ``ema`` is set and there is no moving average.
            TensorMismatchError: for a missing or surplus tensor, or a wrong shape.
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
            raise UnsupportedFlowError(
                "ema: expected a moving average in the file, got none. Use ema=False."
            )
        check_shapes("the tensors of ema.shadow_params", self.moving_average, parameters)
        return {**self.state, **self.moving_average}


class Loaded(NamedTuple):
    """A flow and the contents of its file."""

    flow: ResidualFlow
    saved: Saved


def _records(part: str, found: Any) -> Records:
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"it has no {part}.")
    for name, record in found.items():
        if not isinstance(name, str) or not isinstance(record, StoredTensor):
            raise CorruptCheckpointError(f"{part}: {quoted(name)} is not a tensor.")
    return found


def _plain(value: Any) -> Any:
    """A number or a string as it is; any other value as a description."""
    is_long = isinstance(value, int) and value.bit_length() > BITS
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return value if is_plain and not is_long else quoted(value)


def _converted(
    file: TorchFile, parts: Sequence[Counterpart], records: Records, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The state of our flow.

    Raises:
        CorruptCheckpointError: for values that are not finite.
        TensorMismatchError: for a tensor of a wrong dtype.
        UnsupportedFlowError: for a model that has not been trained.
    """
    state: dict[str, Tensor] = {}
    for part in parts:
        there = {}
        for name in (*part.parameters(), *part.buffers()):
            record = records[f"{part.name}.{name}"]
            if name not in COUNTS and record.storage.dtype not in FLOATING:
                raise TensorMismatchError(
                    f"{part.name}.{name}: expected torch.float32, got {record.storage.dtype}."
                )
            there[name] = tensor = file.tensor(record).double()
            if not bool(tensor.isfinite().all()):
                raise CorruptCheckpointError(
                    f"{part.name}.{name}: expected finite values, got nan or infinity. The "
                    "training had diverged."
                )
        if not bool(there.get("initialized", torch.tensor(True))):
            raise UnsupportedFlowError(
                f"{part.name}: expected a trained model, got one that has not seen a batch."
            )
        for name, tensor in part.converted(there).items():
            converted = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if not bool(converted.isfinite().all()):
                raise CorruptCheckpointError(f"{part.name}: its {name} is not finite in {dtype}.")
            state[f"{part.path}.{name}"] = converted
    return state
