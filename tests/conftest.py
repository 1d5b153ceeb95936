"""Fixtures of the whole suite."""

from collections.abc import Iterator

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
