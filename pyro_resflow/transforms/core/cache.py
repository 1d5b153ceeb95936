"""The cache of a transform's last pass, and the test of whether it is still valid."""

from __future__ import annotations

import threading
import weakref
from collections.abc import MutableMapping
from operator import attrgetter

import torch
from torch import Tensor, nn

from ...callers import is_inside_log_prob
from ...differentiation import saving_hooks
from ...fingerprints import Fingerprint
from ...precision import precision
from ...tracing import check_known, tracing_state, untraced
from ...walk import modules_inside, tensors_of
from .one_pass import OnePass


class RemembersLastPass(nn.Module):
    """A transform that remembers its last pass, in each thread, while that pass is valid.

    A pass is valid while the parameters, the buffers, the input and the output have the values and
    the ``requires_grad`` that they had, while the modules inside are in the same training or
    evaluation mode, and until a backward pass goes through it. It is valid only in its gradient
    mode and under its autocast.

    With gradients enabled, a forward pass inside ``TransformedDistribution.log_prob``, as a flow
    takes that is fast in density, ends when its log-determinant is taken: to record the values of
    all parameters would take a few per cent of a small flow's step.
    """

    def _remember(self, x: Tensor, y: Tensor, ladj: Tensor | None) -> None:
        self._forget()
        if torch._C._are_functorch_transforms_active():
            return  # tensors of torch.func's transformations are not valid outside them
        dependencies, modes = self._dependencies()
        if not any(map(Tensor.is_inference, (x, y, *dependencies))):
            _LAST.passes[self] = LastPass(x, y, ladj, Conditions([x, y, *dependencies], modes))

    def _remember_for_log_prob(self, x: Tensor, y: Tensor, ladj: Tensor) -> None:
        """Remember a pass until its log-determinant is taken, if log_prob is about to do so."""
        if not is_inside_log_prob():
            self._remember(x, y, ladj)
            return
        self._forget()
        if not torch._C._are_functorch_transforms_active():
            _LAST.passes[self] = LastPass(x, y, ladj, None)

    def _forget(self) -> None:
        last = _LAST.passes.pop(self, None)
        if last is not None:
            last.release()

    def _known_pair(
        self, x: Tensor | None = None, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Input and output of the last pass, if it was at x or y (or both) and is still valid."""
        last = self._last_pass(x, y)
        return last.pair if last is not None and self._holds(last) else None

    def _is_valid(self, last: LastPass) -> bool:
        """Whether a new pass would give the same result as the last one.

        Inside ``log_prob`` it is, because the inverse has been computed or checked immediately
        before. A comparison of values would synchronise with an accelerator at every step.
        """
        return is_inside_log_prob() or self._holds(last)

    def _holds(self, last: LastPass) -> bool:
        """Whether the conditions of the last pass still hold."""
        pair = last.pair  # read once: a backward pass in another thread may release it
        if pair is None or last.conditions is None:
            return False
        dependencies, modes = self._dependencies()
        return last.conditions.hold([*pair, *dependencies], modes)

    def _last_pass(self, x: Tensor | None, y: Tensor | None) -> LastPass | None:
        """The last pass, if it was at x or y (or both); it may no longer be valid."""
        if tracing_state() is not None:
            check_known(self.parameters())
        last = _LAST.passes.get(self)
        return last if last is not None and last.was_at(x, y) else None

    def _dependencies(self) -> tuple[list[Tensor], list[bool]]:
        """The state, other than the input, that a pass depends on.

        Returns:
            All parameters, buffers and contexts, and each module's training mode.
        """
        inside = modules_inside(self)
        contexts = [
            each.context
            for each in inside
            if isinstance(each, OnePass) and each.context is not None
        ]
        return [*tensors_of(inside), *contexts], [each.training for each in inside]


class Conditions:
    """Everything that a pass depends on.

    Args:
        tensors: the input, the output, parameters, buffers and contexts.
        modes: each module's training mode.
    """

    def __init__(self, tensors: list[Tensor], modes: list[bool]) -> None:
        self.modes = modes
        self.state = _state(tensors)
        with untraced():
            self.fingerprint = Fingerprint(tensors)

    def hold(self, tensors: list[Tensor], modes: list[bool]) -> bool:
        """Whether a pass under the present conditions would give the same result."""
        if modes != self.modes or self.state != _state(tensors):
            return False
        with untraced():
            return self.fingerprint.fits(tensors)


class LastPass:
    """One evaluation of a transform.

    Args:
        x: the input.
        y: the output.
        ladj: the log-determinant, ``None`` if it was not computed.
        conditions: what it depends on; ``None`` if the pass is valid inside ``log_prob`` alone.
    """

    def __init__(
        self, x: Tensor, y: Tensor, ladj: Tensor | None, conditions: Conditions | None
    ) -> None:
        self.pair: tuple[Tensor, Tensor] | None = (x, y)
        self.ladj = ladj
        self.conditions = conditions
        this = weakref.ref(self)  # a strong reference would tie the graph into a cycle

        def discard(grad: Tensor) -> None:
            evaluation = this()
            if evaluation is not None:
                evaluation.release()

        self.hooks = [
            tensor.register_hook(discard)
            for tensor in (x, y, ladj)
            if tensor is not None and tensor.grad_fn is not None
        ]

    def was_at(self, x: Tensor | None, y: Tensor | None) -> bool:
        """Whether x and y, where given, are the very tensors of this pass."""
        if self.pair is None:
            return False
        return (x is None or x is self.pair[0]) and (y is None or y is self.pair[1])

    def take_ladj(self) -> Tensor:
        """Return the log-determinant and forget it."""
        ladj, self.ladj = self.ladj, None
        if self.conditions is None:
            self.release()
        assert ladj is not None  # for the type checker
        return ladj

    def release(self) -> None:
        """Drop the tensors and their hooks, for instance after a backward pass freed the graph."""
        self.pair = self.ladj = None
        for hook in self.hooks:
            hook.remove()


class _LastPasses(threading.local):
    """The last pass of each transform in the current thread."""

    def __init__(self) -> None:
        self.passes: MutableMapping[RemembersLastPass, LastPass] = weakref.WeakKeyDictionary()


_LAST = _LastPasses()

_REQUIRES_GRAD = attrgetter("requires_grad")


def _state(tensors: list[Tensor]) -> tuple[object, ...]:
    """The modes of a pass: gradients, precision, tracing, and each tensor's ``requires_grad``.

    Saved-tensor hooks count as a mode, because activation checkpointing recomputes the tensors of
    a pass in a separate graph.
    """
    modes = (torch.is_grad_enabled(), precision(tensors[0]), tracing_state())
    hooks = map(id, saving_hooks())
    return (*modes, *hooks, *map(_REQUIRES_GRAD, tensors))
