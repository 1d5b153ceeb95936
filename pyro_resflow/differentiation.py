"""Derivatives that can be differentiated again, and errors where they cannot.

torch differentiates in three ways: its engine (``backward``, ``torch.autograd.grad``), forward
mode (``torch.autograd.forward_ad``) and ``torch.func``. A hand-written backward pass supports only
first derivatives by the engine. :func:`is_transformed` tells whether another way is active, and
:func:`pulled_back` and :func:`pushed_forward` support all three, to any order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Function = Callable[..., Tensor]
Forward = TypeVar("Forward", bound=Callable[..., Any])


def with_signature(forward: Forward) -> Forward:
    """Store the signature of the ``forward`` of an autograd function with a ``setup_context``.

    torch reads the signature in each call of ``apply``. Computing it takes longer than an
    operation on small tensors.
    """
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


torch_func_is_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transform of ``torch.func`` is active."""


def is_transformed(*tensors: Tensor | None) -> bool:
    """Whether ``torch.func`` is active, or one of the tensors carries a forward-mode tangent."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:  # no tensor has a tangent outside of all levels
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def is_only_evaluated(*tensors: Tensor | None) -> bool:
    """Whether a result will have no derivative: gradients are off and no transform is active.

    ``torch.no_grad`` leaves forward mode on. A hand-written function then needs no node.
    """
    return not torch.is_grad_enabled() and not is_transformed(*tensors)


def is_mapped(tensor: Tensor) -> bool:
    """Whether ``torch.func.vmap`` maps over a tensor, at any level."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


class _Outside(torch.autograd.Function):
    """A call outside all transforms: torch runs a function's forward pass below them."""

    @staticmethod
    @with_signature
    def forward(function: Callable[[], None]) -> None:
        function()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: None) -> None:
        """Do nothing: the call is not differentiable."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[None], function: Callable[[], None]) -> tuple[None, None]:
        """Required by torch, but never called: the function has no tensor to map over."""
        raise NotImplementedError


def outside_torch_func(function: Callable[[], None]) -> None:
    """Call a function outside all ``torch.func`` transforms; it must not use transformed tensors.

    Tensors that it creates can be used later, unlike tensors created inside a transform.
    """
    _Outside.apply(function)


def saving_hooks() -> tuple[Any, ...]:
    """The active pair of saved-tensor hooks; empty if there is none.

    ``torch.utils.checkpoint`` and ``torch.autograd.graph.saved_tensors_hooks`` set them.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # torch 2.8
    return (top(False) or ()) if top is not None else ()


def needs_graph(*tensors: Tensor | None) -> bool:
    """Whether a backward pass must be differentiable, or runs under a transform.

    Args:
        tensors: the incoming gradients and saved tensors; each may be ``None``.

    Raises:
        RuntimeError: for batched gradients, which bypass our vmap rules.
    """
    if any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors):
        raise RuntimeError(
            "is_grads_batched, vectorize: expected False, got True. The backward passes of "
            "residual blocks and of solvers take one gradient at a time. Use torch.func.jacrev "
            "or torch.func.hessian for batches."
        )
    return torch.is_grad_enabled() or is_transformed(*tensors)


def pulled_back(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    cotangents: Tensor | tuple[Tensor, ...],
    needed: Sequence[bool] | None = None,
) -> list[Tensor | None]:
    """Vector-Jacobian products of a function, differentiable in all arguments.

    Args:
        function: function of the inputs that returns one or several tensors.
        inputs: the point of differentiation.
        cotangents: one for each output.
        needed: for each input, whether its gradient is needed; default: all.

    Returns:
        The gradients, ``None`` where not needed.
    """
    wanted = list(needed) if needed is not None else [True] * len(inputs)

    def of_wanted(*given: Tensor) -> tuple[Tensor, ...]:
        values = iter(given)
        arguments = (next(values) if w else x for x, w in zip(inputs, wanted, strict=True))
        return _as_tuple(function(*arguments))

    chosen = [x for x, w in zip(inputs, wanted, strict=True) if w]
    if not chosen:
        return [None] * len(inputs)
    by = _by_torch_func if torch_func_is_active() else _by_the_engine
    found = iter(by(of_wanted, chosen, _as_tuple(cotangents)))
    return [next(found) if w else None for w in wanted]


def pushed_forward(
    function: Function, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None], like: Tensor
) -> Tensor:
    """Jacobian-vector product of a function, differentiable in all arguments.

    It is computed by two reverse passes, as the derivative of a vector-Jacobian product with
    respect to its cotangent, because forward mode cannot be nested.

    Args:
        function: function of the inputs that returns one tensor.
        inputs: the point of differentiation.
        tangents: one for each input, ``None`` for zero.
        like: a tensor with the output's shape, dtype and device.
    """
    needed = [tangent is not None for tangent in tangents]
    given = [tangent for tangent in tangents if tangent is not None]
    if not given:
        return torch.zeros_like(like)

    def gradients(w: Tensor) -> tuple[Tensor, ...]:
        found = pulled_back(function, inputs, w, needed)
        return tuple(gradient for gradient in found if gradient is not None)

    return only(pulled_back(gradients, [torch.zeros_like(like)], tuple(given)))


def only(gradients: Sequence[Tensor | None]) -> Tensor:
    """The only gradient that is not ``None``."""
    (gradient,) = (each for each in gradients if each is not None)
    return gradient


def added(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of the gradients that are not ``None``; ``None`` if there are none."""
    parts = [each for each in gradients if each is not None]
    return reduce(torch.add, parts) if parts else None


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _by_torch_func(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    cotangents: tuple[Tensor, ...],
) -> Sequence[Tensor]:
    vjp: Any = torch.func.vjp  # its return type depends on its arguments
    outputs, pull = vjp(function, *inputs)
    found: Sequence[Tensor] = pull(_typed_as(cotangents, outputs))
    return found


def _by_the_engine(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    cotangents: tuple[Tensor, ...],
) -> Sequence[Tensor]:
    with torch.enable_grad():
        # aliases of the inputs: one input may have been computed from another, and gradients
        # would then flow on to that one
        names = [x.view_as(x) if x.requires_grad else x.detach() for x in inputs]
        outputs = function(*(x if x.requires_grad else x.requires_grad_() for x in names))
    pairs = zip(outputs, _typed_as(cotangents, outputs), strict=True)
    differentiable = [(output, w) for output, w in pairs if output.requires_grad]
    if not differentiable:
        return [torch.zeros_like(x) for x in inputs]
    values, weights = zip(*differentiable, strict=True)
    return torch.autograd.grad(values, names, weights, create_graph=True, materialize_grads=True)


def _typed_as(cotangents: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Cotangents converted to the dtypes of the outputs, which autocast may have lowered."""
    return tuple(w.to(y.dtype) for w, y in zip(cotangents, outputs, strict=True))


def gradients_where_needed(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of ``outputs`` with respect to the ``inputs`` that need one, else ``None``."""
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    if not wanted:
        return [None] * len(needed)
    gradients = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True)
    found = iter(gradients)
    return [next(found) if need else None for need in needed]


def forward_rule(rule: Callable[..., Any]) -> Callable[..., Any]:
    """An autograd function's ``jvp`` that an outer forward mode can differentiate.

    Inside ``jvp`` torch disables forward mode, also for an outer ``torch.func.jvp``, whose
    tangents then become zero. This one keeps it enabled, and removes from the saved tensors the
    tangents that are being propagated already.

    Args:
        rule: function of the context, the saved tensors and the tangents of the inputs.
    """

    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors]
            return rule(ctx, saved, *tangents)

    return jvp


class _Refusing(torch.autograd.Function):
    """The identity, whose derivative raises an error that names the remedy."""

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(x: Tensor, remedy: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.remedy = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError(f"derivative: expected a first one, got a second one; {ctx.remedy}")

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, remedy: None) -> None:
        raise RuntimeError(f"derivative: expected a first one, got a second one; {ctx.remedy}")


def refusing(x: Tensor, remedy: str) -> Tensor:
    """Return x; differentiating with respect to the result raises an error.

    It replaces x in the formula of a first derivative that is correct but whose own derivative
    would be wrong. The error is raised only if that derivative is needed.

    Args:
        x: any tensor.
        remedy: the remedy, for the error message.
    """
    refused: Tensor = _Refusing.apply(x, remedy)
    return refused


class _DifferentiableOnce(torch.autograd.Function):
    """The identity, with second derivatives refused."""

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(x: Tensor, remedy: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.remedy = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if needs_graph(x, grad):
            grad = grad + torch.zeros_like(x) * refusing(x, ctx.remedy)
        return grad, None

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], tangent: Tensor, remedy: None) -> Tensor:
        (x,) = saved
        return tangent + torch.zeros_like(x) * refusing(x, ctx.remedy)


def differentiable_once(x: Tensor, remedy: str) -> Tensor:
    """Return x, with correct first derivatives and an error for second derivatives.

    Args:
        x: any tensor that depends on others.
        remedy: the remedy, for the error message.
    """
    once: Tensor = _DifferentiableOnce.apply(x, remedy)
    return once
