"""Find the stages of a plain ``nn.Sequential``, or the reason why it has none.

Stages compute what torch's layers compute, but they call neither the layers nor hooks. So each
module must be one whose evaluation is exactly that of torch's class: no hook, no method replaced,
no compiled call, and weights that are the same at every access. Everything is read anew for each
evaluation, because users may change their modules at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ...walk import modules_inside
from ..stages import Core, Stage
from . import activations
from .layers import convolution, linear, transposed_convolution
from .reshaping import Copy, Reshape

Stages = list[Stage[Any]]
Builder = Callable[[Any], "Stages | str"]

CALLED = ("__call__", "_call_impl", "forward", "__getattr__", "__getattribute__")
"""The methods of all modules that run when a network is called."""

FURTHER: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Sequential: ("__iter__",),
    nn.Conv2d: ("_conv_forward",),
    nn.ConvTranspose2d: ("_output_padding",),
}
"""The further methods that run when a module of a class is called."""

SETTLED_PARAMETRIZATIONS = frozenset(
    {
        "torch.nn.utils.parametrizations._WeightNorm",
        "torch.nn.utils.parametrizations._Orthogonal",
        "deel.torchlip.utils.bjorck_norm._BjorckNorm",
        "deel.torchlip.utils.frobenius_norm._FrobeniusNorm",
        "deel.torchlip.utils.lconv_norm._LConvNorm",
        "deel.torchlip.modules.module._LipschitzCoefMultiplication",
    }
)
"""Parametrizations whose weight is the same at every access in both modes."""

ITERATED_PARAMETRIZATIONS = frozenset({"torch.nn.utils.parametrizations._SpectralNorm"})
"""Parametrizations whose weight changes at each access in training mode."""

TORCHLIP_CONVOLUTIONS = "deel.torchlip.modules.unconstrained"
"""Where deel-torchlip's convolutions are. They pad by ``pad``, in most modes the identity."""


def _flatten(module: Any) -> Stages | str:
    start, end = module.start_dim, module.end_dim
    if start < 1:
        return "its start_dim is not above 0"
    return [Reshape(lambda x: x.flatten(start, end))]


def _unflatten(module: Any) -> Stages | str:
    dim, sizes = module.dim, module.unflattened_size
    if not isinstance(dim, int) or dim < 1:
        return "its dim is not an integer above 0"
    return [Reshape(lambda x: x.unflatten(dim, sizes))]


def _activation(kind: Any) -> Builder:
    return lambda module: [Core(kind(module))]


BUILDERS: dict[type[nn.Module], Builder] = {
    nn.Linear: linear,
    nn.Conv2d: convolution,
    nn.ConvTranspose2d: transposed_convolution,
    nn.Identity: lambda module: [],
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    **{
        getattr(nn, kind.__name__): _activation(kind)
        for kind in (
            activations.ELU,
            activations.GELU,
            activations.LeakyReLU,
            activations.Sigmoid,
            activations.SiLU,
            activations.Softplus,
            activations.Tanh,
        )
    },
}
"""The stages of each class of layers."""

WITH_WEIGHTS = frozenset({nn.Linear, nn.Conv2d, nn.ConvTranspose2d})

PLAIN_TENSORS = (nn.Parameter, Tensor)
"""The types of weights. A subclass may compute products in another way."""

KINDS = (nn.Sequential, *BUILDERS)

ORIGINALS = {
    kind: [(name, getattr(kind, name)) for name in (*CALLED, *FURTHER.get(kind, ()))]
    for kind in KINDS
}
"""The methods of each class, as torch defines them."""


GLOBAL_HOOKS = ("forward_pre", "forward", "backward_pre", "backward")


def _holds_global_hook() -> bool:
    return any(getattr(torch_module, f"_global_{kind}_hooks") for kind in GLOBAL_HOOKS)


_has_any_global_hook: Callable[[], object] = getattr(
    torch_module, "_has_any_global_hook", _holds_global_hook
)
"""Whether hooks are registered for all modules; torch has this function from 2.8 on."""


def stages_or_reason(net: nn.Module) -> Stages | str:
    """The stages of a network, or why it has none.

    Args:
        net: an ``nn.Sequential``.
    """
    if _has_any_global_hook():
        return "net: hooks are registered for all modules"
    stages: Stages = []
    reason = _append(stages, "", net)
    return reason or stages or "net: it has no layer"


def _append(stages: Stages, name: str, module: nn.Module) -> str:
    """Append a module's stages; the result is why it has none, or empty."""
    kind = _kind(type(module))
    reason = "its class has no stages" if kind is None else _reason_against(module, kind)
    if kind is None or reason:
        return f"{name or 'net'} ({type(module).__name__}): {reason}"
    if kind is nn.Sequential:
        for key, each in module._modules.items():  # a layer that is there twice runs twice
            reason = _append(stages, f"{name}.{key}" if name else key, each)  # type: ignore[arg-type]
            if reason:
                return reason
        return ""
    found = BUILDERS[kind](module)
    if isinstance(found, str):
        return f"{name} ({type(module).__name__}): {found}"
    if found and stages and isinstance(found[0], Core) and isinstance(stages[-1], Core):
        stages.append(Copy())
    stages.extend(found)
    return ""


def _kind(cls: type) -> type[nn.Module] | None:
    """The class of torch that a class is, or derives from; ``None`` if it has no stages."""
    if cls in ORIGINALS:
        return cls
    return next((each for each in cls.__mro__ if each in ORIGINALS), None)


def _reason_against(module: Any, kind: type[nn.Module]) -> str:
    """Why a module may not be evaluated in stages as one of its kind; empty if it may."""
    own, cls = module.__dict__, type(module)
    for name, original in ORIGINALS[kind]:
        method = getattr(cls, name)
        if name in own or not (method is original or _only_calls_torch(module, method)):
            return f"it overrides {name}"
    if module._compiled_call_impl is not None:
        return "it is compiled"
    if _has_hooks(module):
        return "it has hooks"
    return _reason_against_weights(module) if kind in WITH_WEIGHTS else ""


def _only_calls_torch(module: Any, method: Any) -> bool:
    """Whether this is the ``forward`` of deel-torchlip's convolution, without its own padding."""
    if getattr(method, "__module__", "") != TORCHLIP_CONVOLUTIONS:
        return False
    names = [getattr(each, "__qualname__", "") for each in (method, module.__dict__.get("pad"))]
    return names == ["PadConv2d.forward", "PadConv2d.__init__.<locals>.<lambda>"]


def _has_hooks(module: nn.Module) -> bool:
    own = module.__dict__  # the attributes would be looked up here, but slower
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def _reason_against_weights(module: Any) -> str:
    """Why stages may not use the weight and the bias of a layer; empty if they may."""
    parametrized = module._modules.get("parametrizations", ())
    for name in ("weight", "bias"):
        if name in parametrized:
            reason = _reason_against_parametrization(parametrized[name])
        elif name not in module._parameters or hasattr(type(module), name):
            reason = "is not a parameter"
        else:
            reason = _reason_against_tensor(module._parameters[name])
        if reason:
            return f"its {name} {reason}"
    return ""


def _reason_against_tensor(tensor: Tensor | None) -> str:
    """Why stages may not use a tensor as weight or bias; empty if they may."""
    if tensor is None:
        return ""
    if type(tensor) not in PLAIN_TENSORS:
        return f"is of class {type(tensor).__name__}"
    return "" if tensor.requires_grad else "is frozen"


def _reason_against_parametrization(parametrization: nn.Module) -> str:
    """Why a parametrization rules out stages; empty if it does not."""
    for each in modules_inside(parametrization):
        if _has_hooks(each):
            return "has a parametrization with hooks"
        if not all(p is None or p.requires_grad for p in each._parameters.values()):
            return "is frozen"
    for each in parametrization.children():
        name = f"{type(each).__module__}.{type(each).__qualname__}"
        if name in ITERATED_PARAMETRIZATIONS:
            if each.training:
                return "changes at each access in training mode (spectral_norm)"
        elif name not in SETTLED_PARAMETRIZATIONS:
            return f"has an unknown parametrization, {type(each).__name__}"
    return ""
