"""Fixtures of the checkpoint tests: a path to save to, and a saved file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyro_resflow import checkpoints, residual_flow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flow.safetensors"


@pytest.fixture
def saved(path: Path) -> Path:
    """A file with a flow."""
    checkpoints.save(residual_flow(2, 1, [4]), path, notes={"data": "none"})
    return path
