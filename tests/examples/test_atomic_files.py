"""Files that are written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from examples.atomic_files import remove_unfinished, replacing, write_whole


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_that_stops_half_way_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "result, 1.5.json"
    write_whole(path, "first ±")
    assert path.read_bytes() == "first ±".encode()

    def stop(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "second")
    assert path.read_bytes() == "first ±".encode()
    assert names(tmp_path) == ["result, 1.5.json"]


def test_two_writers_of_one_place_do_not_write_into_each_others_file(tmp_path):
    path = tmp_path / "place"
    with replacing(path) as first:
        first.write(b"fir")
        with replacing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"st")
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["place"]


def test_a_name_as_long_as_the_system_takes(tmp_path):
    write_whole(tmp_path / ("n" * 255), "text")
    assert names(tmp_path) == ["n" * 255]


def test_what_killed_processes_left_is_removed(tmp_path):
    write_whole(tmp_path / "kept", "text")
    (tmp_path / "0123.partial").touch()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["kept"]
