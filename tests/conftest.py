"""Fixtures of the whole suite."""

import signal
from collections.abc import Iterator

import pyro
import pytest
import torch
from torch.distributions import Distribution

# The networks here are tiny: more threads would wait for each other longer than they compute.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _validation() -> Iterator[None]:
    """Distributions check their arguments, whatever a package that got imported says to that."""
    Distribution.set_default_validate_args(True)  # importing zuko switches it off
    yield
    Distribution.set_default_validate_args(True)


@pytest.fixture
def fresh_store() -> Iterator[None]:
    """Pyro without parameters, before and after, and seeded."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as at a terminal; in the background it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
