"""Checkpoints of the reference implementation of Residual Flows, as flows of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..flows import ResidualFlow
from ..nn.lipschitz import trust_norms
from .architecture import architecture
from .contraction import warn_unless_contraction
from .counterparts import Counterpart, Shapes, counterparts
from .errors import CorruptCheckpointError, UnsupportedFlowError
from .files import Path_, about
from .flows import undisturbed
from .structure import check_shapes
from .torch_files import TorchFile
from .unpickling import StandIn, StoredTensor

Records = Mapping[str, StoredTensor]


def load_reference(
    path: Path_,
    *,
    ema: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    certify: bool = True,
) -> ResidualFlow:
    """Load a checkpoint of the reference implementation of Residual Flows.

    Such files are written by ``train_img.py`` of https://github.com/rtqichen/residual-flows; the
    published ``cifar10``, ``mnist``, ``imagenet32``, ``imagenet64`` and ``celebahq`` models are.
    The flow is built from the options in the file and computes what the reference computes from
    it: the latent vector ``flow.inv(x)``, in the same order, and the log-determinant. Estimator
    and solver are this package's defaults; see :func:`pyro_resflow.transforms.set_logdet`.

    The file is a pickle, and none of what it names is run, see ``SECURITY.md``.

    Args:
        path: the file.
        ema: take the exponential moving average of the parameters, which the reference evaluates
            and samples with, or the parameters themselves.
        device: where to put the flow; default: torch's default device.
        dtype: floating-point type of the flow; default: float32, as in the file.
        certify: see :func:`pyro_resflow.checkpoints.load`. The reference measures norms from
            below, and those of the moving average not at all before it saves.

    Returns:
        The flow from noise to images on [0, 1].

    Raises:
        UnsafePickleError: if the file names anything that has no part in such a checkpoint.
        UnsupportedFlowError: for options whose flow is not built here, naming them.
        TensorMismatchError: if a tensor is missing, surplus or of another shape.
        CorruptCheckpointError: for a file that is truncated, damaged or no such checkpoint.
        OSError: if there is no such file, or it cannot be read.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019.
    """
    device = torch.device(device) if device is not None else torch.get_default_device()
    with TorchFile(path) as file, about(path), undisturbed(torch.device("cpu")):
        saved = Saved.of(file.content)
        built = architecture(saved.args)
        try:
            flow = built.build().to(dtype=dtype or torch.float32)
        except ValueError as error:
            raise UnsupportedFlowError(f"args: no flow can be built of them, {error}") from error
        parts = counterparts(flow, built)
        records = saved.checked(parts, ema=ema)
        flow.load_state_dict(_converted(file, parts, records))
        trust_norms(flow)  # the reference's, which end sooner than ours
        flow.to(device)
    if certify:
        warn_unless_contraction(flow, path)
    return flow


class Saved(NamedTuple):
    """What the training script saves, the optimizer's state aside.

    Attributes:
        args: its options, by name.
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
        return cls(
            content["args"].state,
            _records("state_dict", content.get("state_dict")),
            _records("ema.shadow_params", shadow) if shadow else None,
            content.get("test_bpd"),
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


def _records(what: str, found: Any) -> Records:
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"there is no {what} in it.")
    for name, record in found.items():
        if not isinstance(name, str) or not isinstance(record, StoredTensor):
            raise CorruptCheckpointError(f"{what}: {name!r} is no tensor.")
    return found


def _converted(
    file: TorchFile, parts: Sequence[Counterpart], records: Records
) -> dict[str, Tensor]:
    """The state of our flow.

    Raises:
        CorruptCheckpointError: for values that are not finite.
        UnsupportedFlowError: for a model that has not been trained.
    """
    state: dict[str, Tensor] = {}
    for part in parts:
        there = {}
        for name in (*part.parameters(), *part.buffers()):
            there[name] = tensor = file.tensor(records[f"{part.name}.{name}"]).double()
            if not bool(tensor.isfinite().all()):
                raise CorruptCheckpointError(
                    f"{part.name}.{name} holds nan or infinite values; the training had diverged."
                )
        if not bool(there.get("initialized", torch.tensor(True))):
            raise UnsupportedFlowError(f"{part.name} has not seen a batch: it was never trained.")
        state |= {f"{part.path}.{name}": t for name, t in part.converted(there).items()}
    return state
