"""Folders that one run at a time may write to."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images.callbacks.folder_claim import LOCK, FolderClaim, claim
from examples.images.cli import main


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def claimed(tmp_path: Path) -> Iterator[Path]:
    """A folder that another process has claimed."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        kept = claim(folder)
        os.write(ready[1], b"!")
        os.read(done[0], 1)
        kept.close()
        os._exit(0)
    os.read(ready[0], 1)
    yield folder
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_second_writer_is_stopped_before_the_first_step(claimed, monkeypatch):
    monkeypatch.setattr("sys.argv", ["images"])
    config = "--config=examples/images/configs/residual_flow_digits.yaml"
    with pytest.raises(SystemExit) as end:
        main(["fit", config, f"--trainer.default_root_dir={claimed.parent}"])
    assert re.search(
        rf"error: trainer\.default_root_dir: another run is writing to '{claimed}' "
        rf"\('process \d+ on .*'\)",
        str(end.value),
    )
    assert names(claimed) == [LOCK]
    assert not (claimed.parent / "config.yaml").exists()


def test_a_claim_that_is_let_go_can_be_made_again(tmp_path):
    claim(tmp_path).close()
    child = os.fork()
    if child == 0:
        claim(tmp_path)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with claim(tmp_path) as file:
        file.seek(0)
        assert file.read().startswith(f"process {os.getpid()} on ")
    assert names(tmp_path) == [LOCK]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "0123.partial").touch()

    trainer = SimpleNamespace(
        log_dir=str(tmp_path),
        fast_dev_run=False,
        is_global_zero=True,
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    folder = FolderClaim()
    folder.setup(trainer, None, "fit")
    assert names(tmp_path / "checkpoints") == [LOCK]
    folder.teardown(trainer, None, "fit")
