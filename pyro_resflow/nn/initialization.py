"""Modules that the first batch of data initialises, and the rule for which batch that is.

A batch initialises if it is scored, in training mode, and has at least ``minimum_batch`` samples.
It is scored if one of the callers is a method ``log_prob``, of a distribution or of any other
class, or a function marked by :func:`scores_data`. Samples of the flow do not count as data.
Neither does the input of a transform that is called directly: a transform does not know on which
of its sides the data are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
Setter = Callable[[Any], None]
"""Sets a module's parameters from the statistics that it collects."""

REMEDY = "pyro_resflow.transforms.initialize(flow, data)"
REMEDY_WITHOUT_DATA = "pyro_resflow.transforms.initialize(flow, base.sample((256,)))"

_SAMPLING = frozenset({"sample", "rsample", "rsample_and_log_prob"})
_SCORING: set[CodeType] = set()


class DataInitialized(Rebuildable, nn.Module):
    """A module whose parameters are set by the first batch that is scored in training mode.

    A buffer records that this has happened, so that it is saved. Until then the module has the
    parameters it was built with, and warns once when they are used. Subclasses call :meth:`_start`
    once in their constructor. At each call they ask :meth:`_awaits_batch`, and if it is true pass
    the features to :meth:`_initialize`.
    """

    minimum_batch = 16
    """The smallest batch that initialises by itself. The mean of 16 samples is known to a quarter
    of the standard deviation, 1/sqrt(16), and that to a fifth, 1/sqrt(2 * 15)."""

    minimum_std = 1e-4
    """The smallest standard deviation to divide by, so that constant features stay finite."""

    initialized: Tensor

    def new_statistics(self) -> Statistics:
        """Empty statistics of the features, which batches are added to: by default moments."""
        return Moments()

    def await_batch(self) -> None:
        """Let the next batch that is scored set the parameters, even if one has done so before."""
        self.initialized.fill_(False)
        self._seen_initialized = self._warned = False

    def upgraded(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of a saved state, in the form of this version if an earlier one wrote it.

        Args:
            name: the name of the parameter or buffer.
            tensor: its saved value.
        """
        return tensor

    def _start(self, initialized: bool) -> None:
        # a number, since torch's AveragedModel(use_buffers=True) cannot average bool buffers
        self.register_buffer("initialized", torch.tensor(float(initialized)))
        # the buffer's value on the host, so that only the first calls wait for the device
        self._seen_initialized = initialized
        self._warned = False

    def _awaits_batch(self, x: Tensor, samples: int) -> bool:
        """Whether the module is not initialised, and a batch of so many samples initialises it.

        Raises:
            ValueError: if the batch is scored but must not initialise.
        """
        if self._seen_initialized or x.is_meta or not samples:
            return False
        self._seen_initialized = bool(self.initialized)
        if self._seen_initialized:
            return False
        if _STRATEGY.get() is not None:
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
                f"{waiting}, and the states of a Markov chain must not initialise it; call "
                f"{REMEDY} first."
            )
        if not self.training:
            raise ValueError(
                f"{waiting}, and in evaluation mode no batch initialises it; call {REMEDY}, or "
                f"score a batch of at least {self.minimum_batch} samples in training mode first."
            )
        if samples < self.minimum_batch:
            raise ValueError(
                f"{waiting}, and the {samples} sample(s) of this batch are too few to set its "
                f"scale; score at least {self.minimum_batch} first, or call {REMEDY}. Without "
                "data, as for the prior of a latent variable, initialise it from draws of its "
                f"base distribution: {REMEDY_WITHOUT_DATA}."
            )

    def _warn(self) -> None:
        """Warn that the module is not initialised, once for all modules of the flow around it."""
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
            "as it was built (an ActNorm is the identity). Drawing samples and calling a "
            f"transform directly do not initialise it: call {REMEDY}, or score a batch of at "
            f"least {self.minimum_batch} samples by log_prob in training mode.",
            stacklevel=2,
        )

    @torch.no_grad()
    def _initialize(self, features: Tensor, set_from: Setter) -> None:
        """Set the parameters from features of shape ``(N, F, *)``."""
        if not bool(features.isfinite().all()):
            raise ValueError(
                f"x: expected finite values to initialise this {type(self).__name__}, got nan or "
                "infinite ones."
            )
        (_STRATEGY.get() or _FromOneBatch()).take(self, features, set_from)

    def _mark_initialized(self) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # each process has seen another batch, and all need the same parameters and buffers
            for tensor in (*self.parameters(recurse=False), *self.buffers(recurse=False)):
                torch.distributed.broadcast(tensor, src=0)
        self.initialized.fill_(True)
        self._seen_initialized = True

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args, **kwargs)
        self._seen_initialized = False


def scores_data(function: Function) -> Function:
    """Decorate a function whose batches are data.

    Use it for a module that contains a flow and computes densities or features of data in a method
    of another name than ``log_prob``.

    Args:
        function: the function or method.

    Returns:
        The same function.
    """
    _SCORING.add(function.__code__)
    return function


@torch.no_grad()
def initialize_by(run: Callable[[Any], object], batches: Sequence[Any]) -> None:
    """Initialise modules from batches of data, in training and in evaluation mode.

    Every module gets the mean and standard deviation over all batches together. With one batch
    this takes one pass. With several, each module takes a pass of all batches, up to that module.

    Args:
        run: a function that passes one batch through the modules.
        batches: one or more.

    Raises:
        ValueError: if they hold fewer than two samples, or nan or infinite values.
    """
    if len(batches) == 1:
        _run_with(_FromOneBatch(), run, batches[0])
        return
    while True:
        chunks = _FromSeveralBatches()
        for batch in batches:
            _run_with(chunks, run, batch)
            if chunks.module is None:  # all are initialised
                return
        chunks.set_module()


def writing_to(tensor: Tensor) -> AbstractContextManager[object]:
    """A context to write to a tensor in: inference tensors take writes only in inference mode."""
    return torch.inference_mode() if tensor.is_inference() else nullcontext()


def is_initializing() -> bool:
    """Whether :func:`initialize_by` is among the callers."""
    return _STRATEGY.get() is not None


class Statistics(Protocol):
    """What a module needs to know of its data.

    Attributes:
        samples: the number of samples so far.
    """

    samples: int

    def add(self, samples: Tensor) -> None:
        """Add features of shape ``(N, F, *)``."""


class Moments:
    """Mean and standard deviation of features, over several batches together.

    Reference:
        Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983.
    """

    def __init__(self) -> None:
        self.samples = self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, samples: Tensor) -> None:
        """Add features of shape ``(N, F, *)``."""
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
    """The way in which features of batches initialise a module."""

    def take(self, module: DataInitialized, features: Tensor, set_from: Setter) -> None:
        """Take the features of one batch, shape ``(N, F, *)``."""


class _FromOneBatch:
    """Set each module from one batch, as the batch passes it."""

    def take(self, module: DataInitialized, features: Tensor, set_from: Setter) -> None:
        statistics = module.new_statistics()
        statistics.add(features)
        _set(module, statistics, set_from)


class _ReachedError(Exception):
    """A batch has reached the module that is being set, where its pass ends."""


class _FromSeveralBatches:
    """Set one module from several batches, after all of them have reached it."""

    def __init__(self) -> None:
        self.module: DataInitialized | None = None
        self.set_from: Setter | None = None
        self.statistics: Statistics | None = None

    def take(self, module: DataInitialized, features: Tensor, set_from: Setter) -> None:
        self.module, self.set_from = module, set_from
        if self.statistics is None:
            self.statistics = module.new_statistics()
        self.statistics.add(features)
        raise _ReachedError

    def set_module(self) -> None:
        """Set the module that the batches have reached."""
        if self.module is not None and self.set_from is not None and self.statistics is not None:
            _set(self.module, self.statistics, self.set_from)


_STRATEGY: ContextVar[_Initialization | None] = ContextVar("_STRATEGY", default=None)


def _run_with(how: _Initialization, run: Callable[[Any], object], batch: Any) -> None:
    before = _STRATEGY.set(how)
    try:
        run(batch)
    except _ReachedError:
        pass
    finally:
        _STRATEGY.reset(before)


def _set(module: DataInitialized, statistics: Statistics, set_from: Setter) -> None:
    if statistics.samples < 2:
        raise ValueError(
            f"x: expected at least two samples to initialise this {type(module).__name__}; a "
            "single sample has no standard deviation."
        )
    with torch.no_grad(), writing_to(module.initialized):
        set_from(statistics)
        module._mark_initialized()


def _is_scored() -> tuple[bool, bool]:
    """Whether the current batch is scored, and whether one of Pyro's Markov chains does so.

    A distribution evaluates the log-determinant of a sample again if it was drawn without
    gradients: that does not count as scoring data.
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
