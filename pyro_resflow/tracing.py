"""Run data-dependent code under ``torch.jit.trace``, as one operation that calls back to Python.

A trace records the operations that ran: the iterations of a norm or a solver with their count at
tracing time, and probes and norms as constants. Computations that depend on values therefore run
in Python at every call of the trace instead. Pyro traces in ``JitTrace_ELBO`` and similar classes,
and in ``NUTS(jit_compile=True)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, library

Computation = Callable[..., Sequence[Tensor]]

_tracer: Any = torch._C  # its type stubs lack the functions for traces

_COMPUTATIONS: dict[int, Computation] = {}
"""Callbacks by key. They live as long as the process: torch does not report deleted traces."""

_KEYS = itertools.count()


tracing_state: Callable[[], Any | None] = _tracer._get_tracing_state
"""The state of the trace that is being recorded; ``None`` outside of tracing."""


def untraced() -> AbstractContextManager[None]:
    """A context manager that pauses tracing."""
    return nullcontext() if tracing_state() is None else _paused()


@contextmanager
def _paused() -> Iterator[None]:
    state = tracing_state()
    _tracer._set_tracing_state(None)
    try:
        yield
    finally:
        _tracer._set_tracing_state(state)


def called_back(computation: Computation, *tensors: Tensor) -> list[Tensor]:
    """The results of a computation, which a recorded trace runs again at each call.

    The gradient comes from a second run with the same random numbers. There is no second
    derivative.

    Args:
        computation: function of the tensors; anything else that it uses is read at each call.
        tensors: floating-point inputs that may require gradients.
    """
    key = next(_KEYS)
    _COMPUTATIONS[key] = computation
    seed = torch.randint(2**62, (), device="cpu")  # recorded, so each call draws a new seed
    return _call(key, seed, list(tensors))


def check_known(parameters: Iterable[Tensor]) -> None:
    """Raise if a parameter requires gradients but is not an input of the trace being recorded.

    Raises:
        ValueError: for such a parameter.
    """
    try:
        for parameter in parameters:
            if parameter.requires_grad:
                _tracer._get_value_trace(parameter)
    except RuntimeError as error:
        raise ValueError(
            "torch.jit.trace would record parameters of a flow as constants, but they require "
            "gradients. Register the flow with pyro.module in the model or guide of a compiled "
            "ELBO, or freeze it, as compiled HMC and NUTS need: flow.requires_grad_(False)."
        ) from error


# torch before 2.5 cannot infer a schema from annotations that are not evaluated.
@library.custom_op(
    "pyro_resflow::call_back",
    mutates_args=(),
    schema="(SymInt key, Tensor seed, Tensor[] tensors) -> Tensor[]",
)
def _call(key: int, seed: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    with torch.no_grad(), _with_autograd():
        return [result.clone() for result in _run(key, seed, tensors)]


def _with_autograd() -> AbstractContextManager[None]:
    """A context manager in which autograd works inside an operation, for networks that use it.

    torch runs operations with the dispatch to autograd excluded. Products with a Jacobian that are
    second derivatives of a graph would be zero.
    """
    excluded = _tracer._dispatch_tls_local_exclude_set()
    without = excluded.remove(_tracer.DispatchKey.AutogradFunctionality)
    guard: AbstractContextManager[None] = _tracer._ForceDispatchKeyGuard(
        _tracer._dispatch_tls_local_include_set(), without
    )
    return guard


def _run(key: int, seed: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(seed))
        return _COMPUTATIONS[key](*tensors)


def _save_for_backward(
    ctx: Any, inputs: tuple[int, Tensor, list[Tensor]], output: list[Tensor]
) -> None:
    ctx.key, seed, tensors = inputs
    ctx.wanted = [tensor.requires_grad for tensor in tensors]
    ctx.save_for_backward(seed, *tensors)


def _gradients(ctx: Any, gradients: list[Tensor]) -> tuple[None, None, list[Tensor | None]]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "derivative: expected a first one, got a second one; a traced residual block is "
            "differentiable only once, differentiate the untraced function."
        )
    seed, *tensors = ctx.saved_tensors
    with torch.enable_grad():
        inputs = [
            tensor.detach().requires_grad_(wanted)
            for tensor, wanted in zip(tensors, ctx.wanted, strict=True)
        ]
        results = _run(ctx.key, seed, inputs)
    pairs = zip(results, gradients, strict=True)
    outputs, cotangents = zip(*((r, g) for r, g in pairs if r.requires_grad), strict=True)
    sought = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(outputs, sought, cotangents, allow_unused=True))
    return None, None, [next(found) if wanted else None for wanted in ctx.wanted]


_call.register_autograd(_gradients, setup_context=_save_for_backward)
