"""Modules that the first batch of data initialises, and the rule for what is such a batch.

Only a batch that is scored, in training mode, of at least ``minimum_batch`` samples initialises.
A batch is scored where ``log_prob`` is among the callers, of a distribution or of any other class,
or a function that says so by :func:`scores_data`. Samples are no data, and no more is what a
user gives to a transform directly: a transform does not know which of its ends the data are on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..callers import callers, module_of
from ..rebuilding import Rebuildable
from ..tracing import tracing_state

Function = TypeVar("Function", bound=Callable[..., Any])
Setter = Callable[["Moments"], None]

REMEDY = "pyro_resflow.transforms.initialize(flow, data)"

_SAMPLING = frozenset({"sample", "rsample", "rsample_and_log_prob"})
_SCORING: set[CodeType] = set()


class DataInitialized(Rebuildable, nn.Module):
    """A module whose parameters are set by the first batch that is scored in training mode.

    The flag that this has happened is a buffer, so that it is saved. While the module waits, its
    parameters are those it was built with, and a warning says once that they are used. Subclasses
    call :meth:`_start` once in their constructor; at each call they ask :meth:`_awaits_batch`, and
    where it says so hand the features to :meth:`_initialize`.
    """

    minimum_batch = 16
    """Samples of the least batch that initialises by itself: they determine a mean to a quarter
    of the standard deviation, and the standard deviation to a fifth."""

    minimum_std = 1e-4
    """Features that vary less are scaled as if they varied by this."""

    initialized: Tensor

    def await_batch(self) -> None:
        """Let the next batch that is scored set the parameters, even if one has done so before."""
        self.initialized.fill_(False)
        self._seen_initialized = self._warned = False

    def _start(self, initialized: bool) -> None:
        # a number, for torch's AveragedModel(use_buffers=True) cannot average truth values
        self.register_buffer("initialized", torch.tensor(float(initialized)))
        # the buffer's value on the host, so that only the first calls wait for the device
        self._seen_initialized = initialized
        self._warned = False

    def _awaits_batch(self, x: Tensor, samples: int) -> bool:
        """Whether the module waits, and this batch of so many samples is to initialise it.

        Raises:
            ValueError: if a batch is scored that may not initialise.
        """
        if self._seen_initialized or x.is_meta or not samples:
            return False
        self._seen_initialized = bool(self.initialized)
        if self._seen_initialized:
            return False
        if _EXPLICIT.get() is not None:
            return True
        if tracing_state() is not None:
            raise ValueError(
                f"x: this {type(self).__name__} is not initialised yet, and torch.jit.trace would "
                f"initialise it again at every call; call {REMEDY} before tracing."
            )
        scored, by_a_sampler = _is_scored()
        if scored:
            self._check_admissible(samples, by_a_sampler)
        elif not self._warned:
            self._warn()
        return scored

    def _check_admissible(self, samples: int, by_a_sampler: bool) -> None:
        waiting = f"x: this {type(self).__name__} is not initialised yet"
        if by_a_sampler:
            raise ValueError(
                f"{waiting}, and the states of a Markov chain are no data to start from; call "
                f"{REMEDY} first."
            )
        if not self.training:
            raise ValueError(
                f"{waiting}, and in evaluation mode no batch initialises it; call {REMEDY}, or "
                f"score a batch of at least {self.minimum_batch} samples in training mode first."
            )
        if samples < self.minimum_batch:
            raise ValueError(
                f"{waiting}, and the {samples} sample(s) of this batch say too little of its "
                f"scale; score at least {self.minimum_batch} first, or call {REMEDY}. Where there "
                "is no data, as for the prior of a latent variable, give it draws of the base "
                "distribution (an ActNorm can also be built with initialized=True)."
            )

    def _warn(self) -> None:
        """Say that the module waits; once for all the modules of the flow that is called."""
        flow: nn.Module = self
        for frame in callers():
            caller = frame.f_locals.get("self")
            if isinstance(caller, nn.Module) and any(part is self for part in caller.modules()):
                flow = caller
        for part in flow.modules():
            if isinstance(part, DataInitialized):
                part._warned = True
        warnings.warn(
            f"{type(flow).__name__}: its {type(self).__name__} is not initialised yet and stays "
            "as it was built (an ActNorm is the identity). Samples, and what is given to a "
            f"transform directly, initialise nothing: call {REMEDY}, or score a batch of at least "
            f"{self.minimum_batch} samples by log_prob in training mode.",
            stacklevel=2,
        )

    @torch.no_grad()
    def _initialize(self, features: Tensor, set_from: Setter) -> None:
        """Set the parameters from features of shape ``(N, F, *)``."""
        if not bool(features.isfinite().all()):
            raise ValueError(
                f"x: the batch that is to initialise this {type(self).__name__} holds nan or "
                "infinite values; pass finite ones."
            )
        (_EXPLICIT.get() or _AtOnce()).take(self, features, set_from)

    def _settle(self) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # each process has seen a batch of its own; from here on they have to agree
            for parameter in self.parameters(recurse=False):
                torch.distributed.broadcast(parameter, src=0)
        self.initialized.fill_(True)
        self._seen_initialized = True

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args, **kwargs)
        self._seen_initialized = False


def scores_data(function: Function) -> Function:
    """Mark a function, by a decorator, as one whose batches are data.

    For a module that has a flow inside and computes densities or features of data in a method
    that is not called ``log_prob``.
    """
    _SCORING.add(function.__code__)
    return function


@torch.no_grad()
def initialize_by(run: Callable[[Any], object], batches: Sequence[Any]) -> None:
    """Let batches of data initialise the modules that they pass and that wait, in either mode.

    Every module gets the mean and standard deviation over all batches together. One batch takes
    one pass. Of several, each module takes a pass of all, which ends where it is.

    Args:
        run: passes one batch through the modules.
        batches: one or more.

    Raises:
        ValueError: if they hold fewer than two samples, or nan or infinite values.
    """
    if len(batches) == 1:
        _run_as(_AtOnce(), run, batches[0])
        return
    while True:
        chunks = _Chunks()
        for batch in batches:
            _run_as(chunks, run, batch)
            if chunks.module is None:  # none waits any more
                return
        chunks.set_module()


def is_initializing() -> bool:
    """Whether :func:`initialize_by` is among the callers."""
    return _EXPLICIT.get() is not None


class Moments:
    """Mean and standard deviation of features, of several batches together.

    Reference:
        Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983.
    """

    def __init__(self) -> None:
        self.samples = self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, samples: Tensor) -> None:
        """Take in features of shape ``(N, F, *)``."""
        features = samples.transpose(0, 1).flatten(1)
        count, mean = features.shape[1], features.mean(1)
        total = self.count + count
        gap = mean - self.mean
        self.squares = (
            self.squares
            + (features - mean[:, None]).square().sum(1)
            + gap.square() * (self.count * count / total)
        )
        self.mean = self.mean + gap * (count / total)
        self.count = total
        self.samples += len(samples)

    @property
    def variance(self) -> Tensor:
        """The mean squared deviation, shape ``(F,)``."""
        return self.squares / self.count

    @property
    def std(self) -> Tensor:
        """The standard deviation, of the unbiased variance, shape ``(F,)``."""
        std = (self.squares / (self.count - 1)).sqrt()
        return std.clamp_min(DataInitialized.minimum_std)


class _Initialization(Protocol):
    """What is done with the features of a module that waits."""

    def take(self, module: DataInitialized, features: Tensor, set_from: Setter) -> None:
        """Take the features of one batch, shape ``(N, F, *)``."""


class _AtOnce:
    """Each module is set from the one batch as it passes."""

    def take(self, module: DataInitialized, features: Tensor, set_from: Setter) -> None:
        moments = Moments()
        moments.add(features)
        _set(module, moments, set_from)


class _ReachedError(Exception):
    """A batch has come to the module that is to be set, and goes no further."""


class _Chunks:
    """One module is set from several batches, after all of them have come to it."""

    def __init__(self) -> None:
        self.module: DataInitialized | None = None
        self.set_from: Setter | None = None
        self.moments = Moments()

    def take(self, module: DataInitialized, features: Tensor, set_from: Setter) -> None:
        self.module, self.set_from = module, set_from
        self.moments.add(features)
        raise _ReachedError

    def set_module(self) -> None:
        """Set the module that the batches have come to."""
        if self.module is not None and self.set_from is not None:
            _set(self.module, self.moments, self.set_from)


_EXPLICIT: ContextVar[_Initialization | None] = ContextVar("_EXPLICIT", default=None)


def _run_as(how: _Initialization, run: Callable[[Any], object], batch: Any) -> None:
    before = _EXPLICIT.set(how)
    try:
        run(batch)
    except _ReachedError:
        pass
    finally:
        _EXPLICIT.reset(before)


def _set(module: DataInitialized, moments: Moments, set_from: Setter) -> None:
    if moments.samples < 2:
        raise ValueError(
            f"x: expected at least two samples to initialise this {type(module).__name__}; a "
            "single sample has no standard deviation."
        )
    with torch.no_grad():
        set_from(moments)
    module._settle()


def _is_scored() -> tuple[bool, bool]:
    """Whether the batch on its way is scored, and whether by one of Pyro's Markov chains.

    The log-determinant of a sample, which a distribution evaluates once more where it has been
    drawn without gradients, is no score of data.
    """
    scored = by_a_sampler = False
    for frame in callers():
        name = frame.f_code.co_name
        if name == "log_abs_det_jacobian" or _draws_samples(name, frame):
            return False, False
        scored = scored or name == "log_prob" or frame.f_code in _SCORING
        by_a_sampler = by_a_sampler or module_of(frame).startswith("pyro.infer.mcmc")
    return scored, by_a_sampler


def _draws_samples(name: str, frame: FrameType) -> bool:
    return name in _SAMPLING and isinstance(frame.f_locals.get("self"), Distribution)
