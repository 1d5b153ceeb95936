"""What our transforms share: value and log-determinant from one pass, and a cache that is safe."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import MutableMapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform

from ...differentiation import saving_hooks
from ...fingerprints import Fingerprint
from ...precision import precision, refuse_half_precision
from ...rebuilding import Rebuildable
from ...tracing import check_known, tracing_state, untraced
from ...walk import modules_inside, tensors_of
from .determinism import refuse_noise_in_energy, refuse_noise_in_exponential


class InverseMemory:
    """Remembers the inverse made of an object, so that ``t.inv.inv is t``, and ``i.inv.inv is i``.

    The reference is weak: the inverse holds the object, not the other way round.
    """

    _inverse_ref: weakref.ref[Any] | None = None

    def _remembered_inverse(self) -> Any | None:
        return self._inverse_ref() if self._inverse_ref is not None else None

    def remember_inverse(self, inverse: object) -> None:
        """Take ``inverse`` as the inverse of this, unless another one is in use."""
        if self._remembered_inverse() is None:
            self._inverse_ref = weakref.ref(inverse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inverse_ref": None}


class OnePassTransform(Rebuildable, InverseMemory, dist.TransformModule):
    """A Pyro transform whose value and log-determinant come from one pass.

    Subclasses implement :meth:`call_and_ladj` and ``_inverse``, and may override
    ``_call`` and :meth:`inverse_and_ladj` where one of the two results alone, or both together,
    can be had for less.

    The last pass is cached (``cache_size=1``), by each thread its own: its input and output by
    identity, and its log-determinant, which is handed out once: to ask again is to ask for another
    estimate. A pass is not used again once a parameter, a buffer, the input or the output has
    changed or wants gradients where it did not, a module inside has changed between training and
    evaluation, the gradient mode or autocast is another, or a backward pass has gone through it;
    what ``torch.inference_mode`` makes is not remembered, for changes to it leave no trace.
    With gradients enabled the log-determinant is computed along with the value, in either
    direction, for whoever trains will ask for it; without, which is how distributions draw
    samples, it is not.

    Args:
        cache_size: 0 or 1.
    """

    bijective = True

    context: Tensor | None = None
    """What the transform is conditioned on, if it is conditioned."""

    def __init__(self, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|dy/dx|, the latter of shape ``x.shape[:-domain.event_dim]``; not cached."""
        raise NotImplementedError

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|dy/dx| (of the forward direction) at it; not cached."""
        x = self._inverse(y)
        return x, self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """The transform x => y."""
        refuse_half_precision(self)
        known = self._known_pair(x=x)
        if known is not None:
            return known[1]
        if self._cache_size == 0:
            return self._call(x)
        if torch.is_grad_enabled():
            y, ladj = self.call_and_ladj(x)
            self._remember(x, y, ladj)
        else:
            y = self._call(x)
            self._remember(x, y, None)
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        refuse_half_precision(self)
        known = self._known_pair(y=y)
        if known is not None:
            return known[0]
        if self._cache_size == 0:
            return self._inverse(y)
        if torch.is_grad_enabled():
            x, ladj = self.inverse_and_ladj(y)
            self._remember(x, y, ladj)
        else:
            x = self._inverse(y)
            self._remember(x, y, None)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|dy/dx| at x, shape ``x.shape[:-domain.event_dim]``.

        Raises:
            NoisyEnergyError: if HMC or NUTS asks and the log-determinant is noisy.
            NoisyExponentialError: if it is noisy and would be exponentiated, as in weights,
                Rényi bounds, mixtures and enumeration.
        """
        refuse_half_precision(self)
        refuse_noise_in_energy(self)
        refuse_noise_in_exponential(self, x, y)
        last = self._last_pass(x, y)
        if last is None or last.ladj is None or last.pair_given(*self._surroundings()) is None:
            return self.call_and_ladj(x)[1]
        return last.take_ladj()

    @property
    def inv(self) -> Transform:
        """The inverse, a TransformModule with these parameters; ``t.inv.inv is t``."""
        from .inverse import Inverse

        return self._remembered_inverse() or Inverse(self)

    def with_cache(self, cache_size: int = 1) -> OnePassTransform:
        """This transform, sharing its parameters, with another cache size."""
        if cache_size not in (0, 1):
            raise ValueError(f"cache_size: expected 0 or 1, got {cache_size}.")
        if cache_size == self._cache_size:
            return self
        other = copy.copy(self)
        other._cache_size = cache_size
        return other

    def clear_cache(self) -> None:
        """Forget the last pass, here and in the transforms inside."""
        from .evaluation import clear_cache

        clear_cache(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_inv": None}

    def _remember(self, x: Tensor, y: Tensor, ladj: Tensor | None) -> None:
        self._forget()
        if torch._C._are_functorch_transforms_active():
            return  # what is made inside of torch.func's transformations ends with them
        dependencies, modes = self._surroundings()
        if not any(tensor.is_inference() for tensor in (x, y, *dependencies)):
            _LAST.passes[self] = _Pass(x, y, ladj, dependencies, modes)

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

    def _last_pass(self, x: Tensor | None, y: Tensor | None) -> _Pass | None:
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
            if isinstance(each, OnePassTransform) and each.context is not None
        ]
        return [*tensors_of(inside), *contexts], [each.training for each in inside]


class _Pass:
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
        self.passes: MutableMapping[OnePassTransform, _Pass] = weakref.WeakKeyDictionary()


_LAST = _LastPasses()


def _state(tensors: list[Tensor]) -> tuple[object, ...]:
    """What decides how the tensors are computed with: beside what wants gradients, the modes.

    And what becomes of tensors that are saved for a backward pass: a checkpoint computes them
    anew, in a graph of its own.
    """
    modes = (torch.is_grad_enabled(), precision(tensors[0]), tracing_state())
    hooks = map(id, saving_hooks())
    return (*modes, *hooks, *(tensor.requires_grad for tensor in tensors))
