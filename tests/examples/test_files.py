"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.files import write_whole


def test_a_file_that_stops_half_way_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "result, 1.5.json"
    write_whole(path, "first")
    assert path.read_text() == "first"

    def stop(self: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "second")
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["result, 1.5.json"]
