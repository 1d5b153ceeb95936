"""What the tests of checkpoints share: the file to save to."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flow.safetensors"
