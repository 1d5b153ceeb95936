"""Fixtures of the whole suite."""

import pytest
import torch

# The networks here are tiny: more threads would wait for each other longer than they compute.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
