r"""Residual flows inside zuko's flows, and zuko's transforms inside Pyro's.

The two libraries use opposite directions: a Pyro transform maps noise to data, a zuko transform
data to noise. Both adapters invert the direction, so that the distribution stays the same:
``Flow(to_zuko(t), base)`` is ``TransformedDistribution(base, [t])``.

``import zuko`` disables argument validation for all distributions of torch and Pyro. If this
module is imported first, validation stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import overload

import torch
from pyro.distributions import ConditionalTransformModule, TransformModule
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from ..extras import extra
from ..transforms import Compose, OnePassTransform
from ..transforms.core.checks import check_dtype
from ..transforms.core.conditional import ConditionalInverse
from ..transforms.core.evaluation import call_and_ladj
from ..transforms.core.inverse_memory import InverseMemory


@contextmanager
def _validation_kept() -> Iterator[None]:
    """Restore the argument validation of distributions afterwards."""
    setting = Distribution._validate_args
    try:
        yield
    finally:
        Distribution._validate_args = setting


with extra("zuko"), _validation_kept():
    import zuko
    from zuko.lazy import Flow, LazyInverse, LazyTransform

    from .zuko_contexts import check_context_dim
    from .zuko_differences import (
        ZukoInverseWarning,
        ZukoVersionWarning,
        differentiable_by_all_weights,
        inverse_checked,
        searches,
        warn_of_another_version,
    )


__all__ = [
    "ConditionalZukoTransform",
    "ConditionedZukoTransform",
    "PyroLazyTransform",
    "ZukoInverseWarning",
    "ZukoTransform",
    "ZukoVersionWarning",
    "from_zuko",
    "to_zuko",
]


class PyroLazyTransform(LazyTransform):
    """A Pyro transform as a lazy zuko transform, from data to noise; made by :func:`to_zuko`.

    Args:
        transform: a transform, or a conditional one, from noise to data.
    """

    def __init__(self, transform: TransformModule | ConditionalTransformModule) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, c: Tensor | None = None) -> Transform:
        """The transform from data to noise.

        Args:
            c: context of shape ``(*batch, context_dim)``. An unconditional transform ignores it,
                as zuko's do.

        Raises:
            ValueError: if the transform is conditional and there is no context.
        """
        if not isinstance(self.transform, ConditionalTransform):
            return self.transform.inv
        if c is None:
            raise ValueError(
                "c: expected a context, because this transform is conditional, got None; call the "
                "flow with one, flow(c)."
            )
        return self.transform.condition(c).inv


class ZukoTransform(OnePassTransform):
    """A lazy zuko transform as a Pyro transform, from noise to data; made by :func:`from_zuko`.

    Args:
        lazy: the lazy transform, from data to noise.
        cache_size: 0 or 1.
    """

    def __init__(self, lazy: LazyTransform, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.lazy = lazy

    @property
    def passes(self) -> tuple[str, str]:
        """Not known: some of zuko's transforms take one pass for each dimension."""
        return "", ""

    def encoder(self) -> Transform:
        """zuko's transform, from data to noise, with the current parameters."""
        return self.lazy()

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self.encoder().codomain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return self.encoder().domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_dtype("x", x, self.lazy)
        with differentiable_by_all_weights(self.lazy):
            encoder = self.encoder()
            if isinstance(self.lazy, LazyInverse):
                return call_and_ladj(encoder.inv, x)
            y, ladj = inverse_checked(encoder, x)
            return y, -ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        check_dtype("y", y, self.lazy)
        with differentiable_by_all_weights(self.lazy):
            encoder = self.encoder()
            if isinstance(self.lazy, LazyInverse):
                return inverse_checked(encoder.inv, y)
            x, ladj = call_and_ladj(encoder, y)
            return x, -ladj

    def _call(self, x: Tensor) -> Tensor:
        if searches(self.lazy):
            return self.call_and_ladj(x)[0]
        check_dtype("x", x, self.lazy)
        return self.encoder().inv(x)

    def _inverse(self, y: Tensor) -> Tensor:
        if searches(self.lazy):
            return self.inverse_and_ladj(y)[0]
        check_dtype("y", y, self.lazy)
        return self.encoder()(y)

    def _save_to_state_dict(self, destination, prefix, keep_vars):  # type: ignore[no-untyped-def]
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["zuko"] = zuko.__version__

    def _load_from_state_dict(  # type: ignore[no-untyped-def]
        self, state_dict, prefix, local_metadata, *args
    ) -> None:
        warn_of_another_version(local_metadata.get("zuko"), zuko.__version__)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.encoder().inverse_shape(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.encoder().forward_shape(shape)


class ConditionedZukoTransform(ZukoTransform):
    """A lazy zuko transform at one context; made by ``condition``.

    Args:
        lazy: the lazy transform, from data to noise.
        context: shape ``(*batch, context_dim)``; its batch dimensions broadcast with those of x.
        cache_size: 0 or 1.
    """

    context: Tensor

    def __init__(self, lazy: LazyTransform, context: Tensor, *, cache_size: int = 1) -> None:
        super().__init__(lazy, cache_size=cache_size)
        self.context = context

    def encoder(self) -> Transform:
        """zuko's transform, from data to noise, at the context and the current parameters."""
        return self.lazy(self.context)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        shape = super().forward_shape(shape)
        event = len(shape) - self.codomain.event_dim
        batch = torch.broadcast_shapes(shape[:event], self.context.shape[:-1])
        return torch.Size((*batch, *shape[event:]))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        shape = super().inverse_shape(shape)
        event = len(shape) - self.domain.event_dim
        batch = torch.broadcast_shapes(shape[:event], self.context.shape[:-1])
        return torch.Size((*batch, *shape[event:]))


class ConditionalZukoTransform(InverseMemory, ConditionalTransformModule):
    """A conditional lazy zuko transform as a Pyro one; made by :func:`from_zuko`.

    Args:
        lazy: the lazy transform, from data to noise given a context.
        context_dim: size of the context.
    """

    bijective = True

    def __init__(self, lazy: LazyTransform, context_dim: int) -> None:
        super().__init__()
        self.lazy = lazy
        self.context_dim = context_dim

    @property
    def inv(self) -> ConditionalTransformModule:
        """The conditional inverse, with these parameters; ``t.inv.inv is t``."""
        return self._remembered_inverse() or ConditionalInverse(self)

    def condition(self, context: Tensor) -> ConditionedZukoTransform:
        """The transform at a context of shape ``(*batch, context_dim)``.

        Raises:
            ValueError: for a context of a wrong width, or of another type than the parameters.
        """
        if context.dim() < 1 or context.shape[-1] != self.context_dim:
            raise ValueError(
                f"context: expected shape (*batch, {self.context_dim}), got "
                f"{tuple(context.shape)}."
            )
        check_dtype("context", context, self.lazy)
        return ConditionedZukoTransform(self.lazy, context)


def to_zuko(transform: TransformModule | ConditionalTransformModule) -> PyroLazyTransform:
    r"""A lazy zuko transform from data to noise, for ``zuko.lazy.Flow``.

    For a transform f from noise to data it is :math:`x \mapsto f^{-1}(x)`, with the parameters of
    f; value and log-determinant come from one pass (``call_and_ladj``).

    Args:
        transform: a transform or a conditional transform of this package or of Pyro, from noise to
            data. For a flow that is fitted to data choose ``fast="density"``.

    Raises:
        ValueError: for a transform that is not a module, and so has no parameters to train.

    Example:
        >>> import torch, zuko
        >>> from pyro_resflow import residual_flow
        >>> from pyro_resflow.interop.zuko import to_zuko
        >>> base = zuko.lazy.UnconditionalDistribution(
        ...     zuko.distributions.DiagNormal, torch.zeros(2), torch.ones(2), buffer=True
        ... )
        >>> flow = zuko.lazy.Flow(to_zuko(residual_flow(2, fast="density")), base)
        >>> flow().log_prob(torch.randn(16, 2)).shape  # 16 samples or more initialise its ActNorms
        torch.Size([16])
    """
    if isinstance(transform, TransformModule):
        # inside a Compose, the inverse of a Pyro transform is a module too
        return PyroLazyTransform(
            transform if isinstance(transform.inv, TransformModule) else Compose([transform])
        )
    if isinstance(transform, ConditionalTransformModule):
        return PyroLazyTransform(transform)
    raise ValueError(
        "transform: expected a TransformModule or a ConditionalTransformModule, got "
        f"{type(transform).__name__}. Put transforms without parameters into a "
        "pyro_resflow.transforms.Compose."
    )


@overload
def from_zuko(lazy: Flow | LazyTransform, context_dim: None = None) -> ZukoTransform: ...


@overload
def from_zuko(lazy: Flow | LazyTransform, context_dim: int) -> ConditionalZukoTransform: ...


def from_zuko(
    lazy: Flow | LazyTransform, context_dim: int | None = None
) -> ZukoTransform | ConditionalZukoTransform:
    """A Pyro transform from noise to data, with the parameters of a zuko flow or lazy transform.

    Args:
        lazy: the flow or lazy transform. Only the transform of a flow is used; pass the base to
            Pyro's ``TransformedDistribution``: a standard normal for most of zuko's flows, a
            uniform distribution for circular ones (``NCSF``).
        context_dim: size of the context, for a flow made with ``context=...``; the result is then
            conditional.

    A :class:`ZukoInverseWarning` tells if zuko's inverse fails because its bisection stopped at a
    bound. In evaluation mode gradients reach all weights, as in training mode. State dicts record
    zuko's version; loading one under a version in which its weights have another density gives a
    :class:`ZukoVersionWarning`.

    Returns:
        A ``TransformModule``, or with ``context_dim`` a ``ConditionalTransformModule``.

    Raises:
        ValueError: for an object that is neither a flow nor a lazy transform, and for a
            ``context_dim`` that is not the width that the flow's networks were made for.

    Example:
        >>> import torch, zuko
        >>> import pyro.distributions as dist
        >>> from pyro_resflow.interop.zuko import from_zuko
        >>> base = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
        >>> spline = from_zuko(zuko.flows.NSF(3, transforms=1))
        >>> dist.TransformedDistribution(base, [spline]).sample((7,)).shape
        torch.Size([7, 3])
    """
    transform = lazy.transform if isinstance(lazy, Flow) else lazy
    if not isinstance(transform, LazyTransform):
        raise ValueError(
            f"lazy: expected a zuko Flow or LazyTransform, got {type(lazy).__name__}. A plain "
            "transform becomes one in zuko.lazy.UnconditionalTransform."
        )
    check_context_dim(transform, context_dim)
    if context_dim is None:
        return ZukoTransform(transform)
    return ConditionalZukoTransform(transform, context_dim)
