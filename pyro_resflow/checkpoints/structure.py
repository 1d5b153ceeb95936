"""Compare the structure and the settings of two flows, and load tensors into a flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..nn.initialization import DataInitialized
from ..nn.lipschitz.update import trust_norms
from ..rebuilding import Rebuildable
from .dtypes import FLOATING
from .encoding import Encoder
from .errors import CorruptCheckpointError, NotRebuildableError, TensorMismatchError
from .texts import SHOWN, listed, quoted

Settings = dict[str, dict[str, Any]]


class Shaped(Protocol):
    """A tensor, or the record of a tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a state_dict; shared ones appear under each of their names."""
    named: dict[str, Tensor] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        transient = part._non_persistent_buffers_set
        kept = {name: each for name, each in part._buffers.items() if name not in transient}
        for name, tensor in {**part._parameters, **kept}.items():
            if tensor is not None:
                named[_join_path(path, name)] = tensor
    return named


def first_names(named: Mapping[str, Tensor]) -> dict[str, str]:
    """Map each name to the first name of the same tensor; they differ for shared parameters."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named.items()}


def check_alike(flow: nn.Module, rebuilt: nn.Module) -> None:
    """Raise unless a flow has the structure that its constructor arguments give.

    Raises:
        NotRebuildableError: naming the difference.
    """
    remedy = "it was changed after construction. Construct it as it is, or save its state_dict."
    have, made = _classes(flow), _classes(rebuilt)
    for path in [*have, *made]:
        if have.get(path) != made.get(path):
            raise NotRebuildableError(
                f"flow: {path or 'the whole'!r} is {have.get(path, 'missing')}, but its "
                f"constructor builds {made.get(path, 'nothing')}; {remedy}"
            )
    for path, part in flow.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            raise NotRebuildableError(
                f"flow: {path!r} has extra state (get_extra_state), which files do not support."
            )
    tensors, others = named_tensors(flow), named_tensors(rebuilt)
    differing = tensors.keys() ^ others.keys()
    differing |= {n for n in tensors.keys() & others.keys() if tensors[n].shape != others[n].shape}
    if differing:
        raise NotRebuildableError(
            f"flow: {listed(differing)} differ from those that its constructor builds; {remedy}"
        )
    shared, made_shared = first_names(tensors), first_names(others)
    for name, first in shared.items():
        if made_shared[name] != first:
            raise NotRebuildableError(
                f"flow: the parameter {name!r} is shared with {first!r}, but its constructor "
                f"shares it with {made_shared[name]!r}; {remedy}"
            )


def settings(flow: nn.Module, rebuilt: nn.Module, encoder: Encoder) -> Settings:
    """The attributes set on a flow since its construction, by module and attribute name.

    These are numbers and strategies such as an estimator, in attributes without a leading
    underscore.

    Raises:
        NotRebuildableError: naming an attribute that cannot be written.
    """
    found: Settings = {}
    modules = dict(rebuilt.named_modules())
    for path, part in flow.named_modules():
        for name, value in public_attributes(part):
            if _differs(value, vars(modules[path]).get(name)):
                where = f"{_join_path(path, name)}, set after construction"
                found.setdefault(path, {})[name] = encoder.encode_at(where, value)
    return found


def apply_settings(flow: nn.Module, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Set attributes of a flow's modules.

    Raises:
        CorruptCheckpointError: for a module or attribute that the flow does not have.
    """
    modules = dict(flow.named_modules())
    for path, attributes in found.items():
        for name, value in attributes.items():
            if path not in modules or name not in dict(public_attributes(modules[path])):
                missing = quoted(_join_path(path, name))
                raise CorruptCheckpointError(f"settings: the flow has no {missing}.")
            setattr(modules[path], name, value)


def public_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The settings of a module: its attributes without a leading underscore."""
    for name, value in vars(module).items():
        if isinstance(module, Rebuildable) and not name.startswith("_") and name != "training":
            yield name, value


def _differs(value: Any, made: Any) -> bool:
    if value is made or isinstance(value, Tensor) or isinstance(made, Tensor):
        return False
    if not (_is_setting(value) or _is_setting(made)):
        return False
    try:
        return Encoder().encode(value) != Encoder().encode(made)
    except NotRebuildableError:
        return True


def _is_setting(value: Any) -> bool:
    strategy = isinstance(value, Rebuildable) and not isinstance(value, nn.Module)
    return strategy or isinstance(value, bool | int | float | str | torch.Size | torch.dtype)


def load_tensors(flow: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load parameters and buffers into a flow, which takes their dtypes.

    Args:
        flow: a newly constructed flow.
        tensors: a state_dict, with shared tensors only under their first name.

    Raises:
        TensorMismatchError: naming tensors that are missing, surplus or of a wrong shape or dtype.
    """
    tensors = _upgraded(flow, _with_flags_as_numbers(flow, tensors))
    own = named_tensors(flow)
    first = first_names(own)
    expected = {name: own[name] for name in set(first.values())}
    check_shapes("the tensors", tensors, {name: each.shape for name, each in expected.items()})
    check_types(tensors, {name: each.dtype for name, each in expected.items()})
    floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(floating) == 1:
        flow.to(dtype=floating.pop())
    for name, tensor in expected.items():
        tensor.data = tensor.data.to(tensors[name].dtype)
    if not any(tensor.is_meta for tensor in expected.values()):  # meta tensors have no values
        flow.load_state_dict({name: tensors[first[name]] for name in own})
        trust_norms(flow)  # use the stored norms as they are; `certify` verifies them


def _with_flags_as_numbers(flow: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with boolean ``initialized`` flags of older files converted to numbers."""
    dtype = next((each.dtype for each in tensors.values() if each.is_floating_point()), None)
    flags = {
        _join_path(path, "initialized")
        for path, part in flow.named_modules(remove_duplicate=False)
        if isinstance(part, DataInitialized)
    }
    return {
        name: each.to(dtype or torch.get_default_dtype())
        if name in flags and each.dtype is torch.bool
        else each
        for name, each in tensors.items()
    }


def _upgraded(flow: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with those of earlier versions in the form of this one."""
    found = dict(tensors)
    for path, part in flow.named_modules(remove_duplicate=False):
        if isinstance(part, DataInitialized):
            for name in (*part._parameters, *part._buffers):
                full = _join_path(path, name)
                if full in found:
                    found[full] = part.upgraded(name, found[full])
    return found


def check_shapes(
    label: str, tensors: Mapping[str, Shaped], shapes: Mapping[str, tuple[int, ...] | None]
) -> None:
    """Raise unless the tensors have exactly these names and shapes.

    Args:
        label: the name of the tensors in the error.
        tensors: by name.
        shapes: by name; ``None`` allows any shape.

    Raises:
        TensorMismatchError: naming tensors that are missing, surplus or of a wrong shape.
    """
    problems = []
    if missing := shapes.keys() - tensors.keys():
        problems.append(f"missing {listed(set(missing))}")
    if surplus := tensors.keys() - shapes.keys():
        problems.append(f"surplus {listed(set(surplus))}")
    for name, shape in shapes.items():
        if shape is not None and name in tensors and tuple(tensors[name].shape) != tuple(shape):
            found = f"{name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(shape)}"
            problems.append(found)
    _raise_mismatch(label, problems)


def check_types(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise unless the tensors have the dtypes of their targets.

    Any floating-point dtype that a flow can be converted to matches any other.

    Args:
        tensors: by name.
        dtypes: by name.

    Raises:
        TensorMismatchError: naming tensors of a wrong dtype.
    """
    problems = []
    for name, dtype in dtypes.items():
        found = tensors[name].dtype
        if found != dtype and not (found in FLOATING and dtype in FLOATING):
            problems.append(f"{name!r} has dtype {found}, expected {dtype}")
    _raise_mismatch("the tensors", problems)


def _raise_mismatch(label: str, problems: Sequence[str]) -> None:
    """Raise an error that lists the first problems, if there are any."""
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise TensorMismatchError(
            f"{label} do not match the flow described: {'; '.join(problems[:SHOWN])}{more}."
        )


def _classes(module: nn.Module) -> dict[str, str]:
    """The class name of each module. torch gives parametrized modules classes of equal names."""
    parts = module.named_modules(remove_duplicate=False)
    return {path: f"{type(part).__module__}.{type(part).__name__}" for path, part in parts}


def _join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
