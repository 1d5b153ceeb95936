"""Networks that can be linearized: one forward pass, then cheap products with the Jacobian.

The log-determinant estimators and the solvers ask a network g for three things: ``forward(x)``,
``linearize(x)`` and ``dual(x, v)``. The networks of :mod:`pyro_resflow.nn` provide them by hand;
:class:`AutogradNetwork` provides them for any other :class:`torch.nn.Module`.

Shapes: ``x`` is ``(N, *event)``; tangents and cotangents carry one leading probe dimension,
``(S, N, *event)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call


class Linearization(NamedTuple):
    r"""A network at a point: its value and its Jacobian's two products.

    Attributes:
        value: :math:`g(x)`, shape ``(N, *event)``; differentiable if made with gradients enabled.
        vjp: :math:`w \mapsto J_g(x)^T w`, on ``(S, N, *event)``; never differentiable.
        jvp: :math:`v \mapsto J_g(x) v`, on ``(S, N, *event)``; differentiable in x and the
            parameters if made and called with gradients enabled.
    """

    value: Tensor
    vjp: Callable[[Tensor], Tensor]
    jvp: Callable[[Tensor], Tensor]


@runtime_checkable
class Linearizable(Protocol):
    """What the estimators and the solvers need of a network."""

    def __call__(self, x: Tensor) -> Tensor:
        """g(x), shape ``(N, *event)``."""

    def linearize(self, x: Tensor) -> Linearization:
        """g at x, with products with its Jacobian."""

    def dual(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and J_g(x) v in one pass, both differentiable."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor but x that g depends on and that may want a gradient."""


class AutogradNetwork:
    r"""Make any module linearizable, through reverse- and forward-mode differentiation.

    Args:
        net: a module mapping ``(N, *event)`` to ``(N, *event)``, one sample independent of the
            next (no batch statistics), twice differentiable.

    Gradients reach ``net.parameters()``. A tensor that the module holds otherwise is treated as a
    constant.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)

    def linearize(self, x: Tensor) -> Linearization:
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = differentiable_point(x, keep_graph=differentiable)
            value = self.net(point)

        def vjp(w: Tensor) -> Tensor:
            if not value.requires_grad:
                return torch.zeros_like(w)
            rows = [
                torch.autograd.grad(value, point, r, retain_graph=True, materialize_grads=True)[0]
                for r in w
            ]
            return torch.stack(rows)

        def jvp(v: Tensor) -> Tensor:
            return torch.stack([_double_vjp(value, point, tangent) for tangent in v])

        return Linearization(value if differentiable else value.detach(), vjp, jvp)

    def dual(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [self._dual(x, tangent) for tangent in v]
        return pairs[0][0], torch.stack([tangent for _, tangent in pairs])

    def _dual(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        try:
            with forward_ad.dual_level():
                value, tangent = forward_ad.unpack_dual(self.net(forward_ad.make_dual(x, v)))
        except NotImplementedError:  # some operation has no forward-mode rule
            with torch.enable_grad():
                point = differentiable_point(x)
                value = self.net(point)
            return value, _double_vjp(value, point, v)
        return value, torch.zeros_like(value) if tangent is None else tangent

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.net.parameters())


def differentiable_point(x: Tensor, *, keep_graph: bool = True) -> Tensor:
    """x itself where it wants gradients and keeps its graph, else a leaf that does."""
    if x.is_inference():
        return x.clone().requires_grad_()
    return x if keep_graph and x.requires_grad else x.detach().requires_grad_()


def _double_vjp(value: Tensor, point: Tensor, v: Tensor) -> Tensor:
    """J v as the derivative of J^T w, which is linear in w, with respect to w."""
    if not value.requires_grad:
        return torch.zeros_like(v)
    with torch.enable_grad():
        w = torch.zeros_like(value, requires_grad=True)
        (cotangent,) = torch.autograd.grad(
            value, point, w, create_graph=True, materialize_grads=True
        )
        if not cotangent.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(cotangent, w, v, create_graph=True, materialize_grads=True)[0]


Result = TypeVar("Result")


class _Call(nn.Module):
    """A method of a network as a module, for ``functional_call``."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *args: Tensor) -> Any:
        return self.method(*args)


def call_with_tensors(
    net: Linearizable,
    tensors: Sequence[Tensor],
    method: Callable[..., Result],
    *args: Tensor,
) -> Result:
    """A method of the network, with the tensors that it had in the forward pass.

    They differ from those it has now if ``torch.func.functional_call`` put them there.
    """
    if all(a is b for a, b in zip(net.tensors(), tensors, strict=True)):
        return method(*args)
    module = net.net if isinstance(net, AutogradNetwork) else net
    if not isinstance(module, nn.Module):
        raise RuntimeError("The network's tensors have been replaced since the forward pass.")
    names = [f"module.{name}" for name, _ in module.named_parameters()]
    replaced = dict(zip(names, tensors, strict=False))  # the shifts that follow are in place
    result: Result = functional_call(_Call(module, method), replaced, args)
    return result


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which operations keep the precision of what they are given."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def gradients_where_needed(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of ``outputs`` with respect to those ``inputs`` that need one, else ``None``."""
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    if not wanted:
        return [None] * len(needed)
    found = iter(torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True))
    return [next(found) if need else None for need in needed]


class _FirstDerivativeOnly(torch.autograd.Function):
    """The identity, whose own derivative is an error that names the remedy."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor, remedy: str) -> Tensor:
        ctx.remedy = remedy
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError(f"There is no second derivative here: {ctx.remedy}")


def first_derivative_only(
    gradients: Sequence[Tensor | None], remedy: str
) -> tuple[Tensor | None, ...]:
    """Gradients that refuse, rather than drop, a second derivative.

    Args:
        gradients: results of a backward pass that was computed without a graph.
        remedy: what to do instead, for the error.
    """
    if not torch.is_grad_enabled():  # no create_graph=True
        return tuple(gradients)
    return tuple(
        gradient
        if gradient is None
        else _FirstDerivativeOnly.apply(
            gradient, torch.zeros((), device=gradient.device, requires_grad=True), remedy
        )
        for gradient in gradients
    )


def as_linearizable(net: nn.Module | Linearizable) -> Linearizable:
    """Return ``net`` itself if it can be linearized, else an :class:`AutogradNetwork` of it."""
    return net if isinstance(net, Linearizable) else AutogradNetwork(net)


def resolve_event_dim(net: object, event_dim: int | None) -> int:
    """Number of event dimensions: as given, else ``net.event_dim``, else 1.

    Raises:
        ValueError: if the result is not a positive integer.
    """
    resolved = getattr(net, "event_dim", 1) if event_dim is None else event_dim
    if not isinstance(resolved, int) or resolved < 1:
        raise ValueError(f"event_dim: expected an integer of at least 1, got {resolved!r}.")
    return resolved


def flatten_batch(x: Tensor, event_dim: int) -> tuple[Tensor, torch.Size]:
    """Collapse all leading dimensions into one: ``(*batch, *event)`` to ``(N, *event)``.

    Raises:
        ValueError: if ``x`` has fewer than ``event_dim`` dimensions.
    """
    if x.dim() < event_dim:
        raise ValueError(
            f"x: expected at least event_dim={event_dim} dimensions, got shape {tuple(x.shape)}."
        )
    batch_shape = x.shape[: x.dim() - event_dim]
    return x.reshape((batch_shape.numel(), *x.shape[x.dim() - event_dim :])), batch_shape
