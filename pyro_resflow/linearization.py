"""Networks that can be linearized: one forward pass, then cheap products with the Jacobian.

The log-determinant estimators and the solvers ask a network g for its coefficients, its value and
its :class:`Linearization`. The networks of :mod:`pyro_resflow.nn` implement these by hand;
:class:`AutogradNetwork` implements them for any other :class:`torch.nn.Module`.

Shapes: ``x`` is ``(N, *event)``; tangents and cotangents carry one leading probe dimension,
``(S, N, *event)``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, singledispatch
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from .differentiation import gradients_where_needed, is_transformed
from .walk import modules_inside

_FORWARD_MODE = threading.RLock()
"""torch counts the levels of forward-mode differentiation for all threads together."""


class Linearization(Protocol):
    r"""A network linearized at a point: its value, products with its Jacobian, and derivatives."""

    @property
    def value(self) -> Tensor:
        """g(x), shape ``(N, *event)``; differentiable if made with gradients enabled."""

    def vjp(self, w: Tensor) -> Tensor:
        r""":math:`w \mapsto J_g(x)^T w`, on ``(S, N, *event)``."""

    def jvp(self, v: Tensor) -> Tensor:
        r""":math:`v \mapsto J_g(x) v`, on ``(S, N, *event)``.

        Differentiable in x and the coefficients if made and called with gradients enabled.
        """

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        r"""Gradients of :math:`\langle\bar y, g(x)\rangle + \langle\bar v, J_g(x) v\rangle`.

        Args:
            v: tangents, shape ``(S, N, *event)``.
            value_cotangent: :math:`\bar y`, shape ``(N, *event)``.
            tangent_cotangents: :math:`\bar v`, shape ``(S, N, *event)``.
            needed: for x and for each coefficient, whether its gradient is wanted.

        Returns:
            The gradients with respect to x and the coefficients at fixed v; ``None`` where not
            wanted.
        """


@runtime_checkable
class Linearizable(Protocol):
    """The interface of networks that estimators and solvers use.

    A network may also have a method ``bound()``, which returns a network prepared for the many
    evaluations of one solve or one estimate, see :meth:`pyro_resflow.nn.Chain.bound`.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """g(x), shape ``(N, *event)``; differentiable."""

    def coefficients(self) -> tuple[Tensor, ...]:
        """Every tensor other than x that g depends on and that may need a gradient."""

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """g(x) with given coefficients, shape ``(N, *event)``; differentiable."""

    def linearize(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Linearization:
        """Linearize g at x, with the given coefficients; default: its current ones."""


@dataclass(frozen=True)
class WithCoefficients:
    """A network with coefficients that are computed once, for all evaluations of a solver.

    Args:
        net: the network.
        coefficients: the result of :meth:`Linearizable.coefficients`.
    """

    net: Linearizable
    coefficients: Sequence[Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """g(x), shape ``(N, *event)``."""
        return self.net.evaluate(x, self.coefficients)

    def linearize(self, x: Tensor) -> Linearization:
        """Linearize g at x."""
        return self.net.linearize(x, self.coefficients)

    def without_history(self) -> WithCoefficients:
        """This network with coefficients that are leaves of the autograd graph."""
        return WithCoefficients(self.net, without_history(self.coefficients))


def without_history(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as leaves of the graph: none is computed from another."""
    return [t if t.is_leaf else t.detach().requires_grad_(t.requires_grad) for t in tensors]


@dataclass(frozen=True)
class Negative:
    """The network -g.

    Args:
        net: g.
    """

    net: Linearizable

    def __call__(self, x: Tensor) -> Tensor:
        return -self.net(x)

    def coefficients(self) -> tuple[Tensor, ...]:
        return self.net.coefficients()

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        return -self.net.evaluate(x, coefficients)

    def linearize(
        self, x: Tensor, coefficients: Sequence[Tensor] | None = None
    ) -> NegativeLinearization:
        return NegativeLinearization(self.net.linearize(x, coefficients))


@dataclass(frozen=True)
class NegativeLinearization:
    """The linearization of -g.

    Args:
        linearization: the linearization of g.
    """

    linearization: Linearization

    @property
    def value(self) -> Tensor:
        return -self.linearization.value

    def vjp(self, w: Tensor) -> Tensor:
        return -self.linearization.vjp(w)

    def jvp(self, v: Tensor) -> Tensor:
        return -self.linearization.jvp(v)

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        return self.linearization.dual_vjp(v, -value_cotangent, -tangent_cotangents, needed)


class AutogradNetwork:
    r"""Make any module linearizable, through reverse- and forward-mode differentiation.

    Args:
        net: a module mapping ``(N, *event)`` to ``(N, *event)``, one sample independent of the
            next (no batch statistics), the same function at every call (no dropout in training
            mode: the backward pass calls it again), twice differentiable.

    Gradients reach ``net.parameters()``. All other tensors of the module count as constants.
    """

    overwrites_input = False

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        # of its input, which the caller still needs, or only of features inside
        self.overwrites_input = any(getattr(m, "inplace", False) for m in modules_inside(net))

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x.clone() if self.overwrites_input else x)

    def coefficients(self) -> tuple[Tensor, ...]:
        return tuple(self.net.parameters())

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        names = (name for name, _ in self.net.named_parameters())
        own = self.net.parameters()
        replaced = {
            name: tensor
            for name, tensor, mine in zip(names, coefficients, own, strict=True)
            if tensor is not mine
        }
        x = x.clone() if self.overwrites_input else x
        return functional_call(self.net, replaced, (x,)) if replaced else self.net(x)

    def linearize(
        self, x: Tensor, coefficients: Sequence[Tensor] | None = None
    ) -> AutogradLinearization:
        given = self.coefficients() if coefficients is None else coefficients
        return AutogradLinearization(self, x, given)

    def dual(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and J_g(x) v, differentiable: x of ``(N, *event)``, v of ``(S, N, *event)``."""
        return self.dual_with(x, v, self.coefficients())

    def dual_with(
        self, x: Tensor, v: Tensor, coefficients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """:meth:`dual` with given coefficients."""
        pairs = [self._dual(x, tangent, coefficients) for tangent in v]
        return pairs[0][0], torch.stack([tangent for _, tangent in pairs])

    def _dual(self, x: Tensor, v: Tensor, coefficients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        try:
            with _FORWARD_MODE, forward_ad.dual_level():
                image = self.evaluate(forward_ad.make_dual(x, v), coefficients)
                value, tangent = forward_ad.unpack_dual(image)
        except NotImplementedError:  # some operation has no forward-mode rule
            with torch.enable_grad():
                point = differentiable_point(x)
                value = self.evaluate(point, coefficients)
            return value, _double_vjp(value, point, v)
        return value, torch.zeros_like(value) if tangent is None else tangent


class AutogradLinearization:
    """A module linearized at a point; its graph is built when it is first needed.

    Args:
        net: the module.
        x: the point, shape ``(N, *event)``.
        coefficients: its parameters.
    """

    def __init__(self, net: AutogradNetwork, x: Tensor, coefficients: Sequence[Tensor]) -> None:
        self.net = net
        self.x = x
        self.differentiable = torch.is_grad_enabled()
        self.coefficients = coefficients if self.differentiable else without_history(coefficients)

    @cached_property
    def _graph(self) -> tuple[Tensor, Tensor]:
        """The point and the value at it."""
        with torch.inference_mode(False), torch.enable_grad():
            point = differentiable_point(self.x, keep_graph=self.differentiable)
            return point, self.net.evaluate(point, self.coefficients)

    @property
    def value(self) -> Tensor:
        value = self._graph[1]
        return value if self.differentiable else value.detach()

    def vjp(self, w: Tensor) -> Tensor:
        point, value = self._graph
        if not value.requires_grad:
            return torch.zeros_like(w)
        rows = [
            torch.autograd.grad(value, point, r, retain_graph=True, materialize_grads=True)[0]
            for r in w
        ]
        return torch.stack(rows)

    def jvp(self, v: Tensor) -> Tensor:
        point, value = self._graph
        return torch.stack([_double_vjp(value, point, tangent) for tangent in v])

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        with torch.enable_grad():
            if "_graph" in vars(self):
                point, value = self._graph
                tangents = self.jvp(v)
            else:
                point = self.x.detach().requires_grad_()
                value, tangents = self.net.dual_with(point, v, self.coefficients)
        return gradients_where_needed(
            [value, tangents],
            [value_cotangent.to(value.dtype), tangent_cotangents.to(tangents.dtype)],
            [point, *self.coefficients],
            needed,
        )


def differentiable_point(x: Tensor, *, keep_graph: bool = True) -> Tensor:
    """x itself if it requires gradients and keeps its graph, else a copy that requires them."""
    if x.is_inference():
        return x.clone().requires_grad_()
    if keep_graph and is_transformed(x):  # detaching x would drop its tangent
        return x.view_as(x) if x.requires_grad else x.view_as(x).requires_grad_()
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


def address(tensor: Tensor) -> int:
    """The address of a tensor's values, which alone reveals a write ``tensor.data = ...``."""
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor inside torch.func's transformations has no storage
        return 0


@singledispatch
def linearizable_module(net: nn.Module) -> Linearizable:
    """A linearizable network that computes the function of a plain module.

    :mod:`pyro_resflow.nn` registers how it evaluates the ``nn.Sequential`` networks of torch.
    """
    return AutogradNetwork(net)


def as_linearizable(net: nn.Module | Linearizable) -> Linearizable:
    """A network that can be linearized, for one solve or one estimate.

    For a module that cannot be linearized itself, this is :func:`linearizable_module`. For a
    linearizable network it is the result of ``net.bound()``, or ``net`` without such a method.
    """
    if not isinstance(net, Linearizable):
        return linearizable_module(net)
    bound = getattr(net, "bound", None)
    return bound() if callable(bound) else net


def resolve_event_dim(net: object, event_dim: int | None) -> int:
    """Number of event dimensions: as given, else ``net.event_dim``, else 1.

    Raises:
        ValueError: if the result is not a positive integer.
    """
    resolved = getattr(net, "event_dim", 1) if event_dim is None else event_dim
    if not isinstance(resolved, int) or resolved < 1:
        raise ValueError(f"event_dim: expected an integer of at least 1, got {resolved!r}.")
    return resolved


def known_event_shape(net: object, event_dim: int) -> torch.Size | None:
    """The event shape that a network declares; ``None`` if not of ``event_dim`` dimensions."""
    if hasattr(net, "event_shape") and len(net.event_shape) == event_dim:
        return torch.Size(net.event_shape)
    if hasattr(net, "input_dim") and event_dim == 1:
        return torch.Size((net.input_dim,))
    return None


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
