"""Fixtures of the tests of the image examples."""

import pytest


@pytest.fixture
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the command line by which pytest was started."""
    monkeypatch.setattr("sys.argv", ["images"])
