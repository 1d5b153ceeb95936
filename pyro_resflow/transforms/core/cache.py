"""The last pass of a transform: for how long it may be used again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import MutableMapping
from operator import attrgetter

import torch
from torch import Tensor, nn

from ...differentiation import saving_hooks
from ...fingerprints import Fingerprint
from ...precision import precision
from ...tracing import check_known, tracing_state, untraced
from ...walk import modules_inside, tensors_of
from .one_pass import OnePass


class RemembersLastPass(nn.Module):
    """A transform that remembers its last pass, in each thread, for as long as it holds.

    A pass is not used again once a parameter, a buffer, the input or the output has changed, or
    wants gradients where it did not; once a module inside has changed between training and
    evaluation; in another gradient mode or under another autocast; or once a backward pass has
    gone through it.
    """

    def _remember(self, x: Tensor, y: Tensor, ladj: Tensor | None) -> None:
        self._forget()
        if torch._C._are_functorch_transforms_active():
            return  # what is made inside of torch.func's transformations ends with them
        dependencies, modes = self._surroundings()
        if not any(map(Tensor.is_inference, (x, y, *dependencies))):
            _LAST.passes[self] = LastPass(x, y, ladj, dependencies, modes)

    def _forget(self) -> None:
        last = _LAST.passes.pop(self, None)
        if last is not None:
            last.release()

    def _known_pair(
        self, x: Tensor | None = None, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Input and output of the last pass, if it was of x or y or both, and still holds."""
        last = self._last_pass(x, y)
        return None if last is None else last.pair_given(*self._surroundings())

    def _last_pass(self, x: Tensor | None, y: Tensor | None) -> LastPass | None:
        """The last pass, if it was of x or y or both; it may no longer hold."""
        if tracing_state() is not None:
            check_known(self.parameters())
        last = _LAST.passes.get(self)
        return last if last is not None and last.is_of(x, y) else None

    def _surroundings(self) -> tuple[list[Tensor], list[bool]]:
        """What a pass depends on beside its input.

        Returns:
            Every tensor, contexts inside among them, and which modules are in training mode.
        """
        inside = modules_inside(self)
        contexts = [
            each.context
            for each in inside
            if isinstance(each, OnePass) and each.context is not None
        ]
        return [*tensors_of(inside), *contexts], [each.training for each in inside]


class LastPass:
    """One evaluation of a transform, for as long as nothing that it depends on has changed."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        ladj: Tensor | None,
        dependencies: list[Tensor],
        modes: list[bool],
    ) -> None:
        self.pair: tuple[Tensor, Tensor] | None = (x, y)
        self.ladj = ladj
        self.modes = modes
        self.state = _state([x, y, *dependencies])
        with untraced():
            self.fingerprint = Fingerprint([x, y, *dependencies])
        this = weakref.ref(self)  # a strong reference would tie the graph into a cycle

        def spend(grad: Tensor) -> None:
            evaluation = this()
            if evaluation is not None:
                evaluation.release()

        self.hooks = [
            tensor.register_hook(spend)
            for tensor in (x, y, ladj)
            if tensor is not None and tensor.grad_fn is not None
        ]

    def is_of(self, x: Tensor | None, y: Tensor | None) -> bool:
        """Whether the pass was of these very tensors, those that are given."""
        if self.pair is None:
            return False
        return (x is None or x is self.pair[0]) and (y is None or y is self.pair[1])

    def pair_given(
        self, dependencies: list[Tensor], modes: list[bool]
    ) -> tuple[Tensor, Tensor] | None:
        """Input and output, if the pass would come out the same were it made now."""
        pair = self.pair
        if pair is None or modes != self.modes:
            return None
        tensors = [*pair, *dependencies]
        if self.state != _state(tensors):
            return None
        with untraced():
            return pair if self.fingerprint.fits(tensors) else None

    def take_ladj(self) -> Tensor:
        """The log-determinant, once."""
        ladj, self.ladj = self.ladj, None
        assert ladj is not None  # for the type checker
        return ladj

    def release(self) -> None:
        """Let go of the tensors, whose graph a backward pass has freed, and of their hooks."""
        self.pair = self.ladj = None
        for hook in self.hooks:
            hook.remove()


class _LastPasses(threading.local):
    """Each transform's last pass, in one thread."""

    def __init__(self) -> None:
        self.passes: MutableMapping[RemembersLastPass, LastPass] = weakref.WeakKeyDictionary()


_LAST = _LastPasses()

_REQUIRES_GRAD = attrgetter("requires_grad")


def _state(tensors: list[Tensor]) -> tuple[object, ...]:
    """Everything beside values that a pass depends on: modes, and which tensors want gradients.

    Hooks of saved tensors are among them: a checkpoint computes such tensors anew, in a graph of
    its own.
    """
    modes = (torch.is_grad_enabled(), precision(tensors[0]), tracing_state())
    hooks = map(id, saving_hooks())
    return (*modes, *hooks, *map(_REQUIRES_GRAD, tensors))
