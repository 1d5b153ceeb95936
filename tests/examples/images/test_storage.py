"""Checkpoints as files: full disks, damage."""

from __future__ import annotations

import os
import pickle
import resource

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images.cli import main
from examples.images.run_errors import SetupError, StorageError
from examples.images.storage import AtomicCheckpoints, read_checkpoint

RUN = {"state_dict": {}, "global_step": 3, "pytorch-lightning_version": "2.0"}


def test_a_full_disk_is_named_and_leaves_the_old_file_alone(tmp_path):
    storage, path = AtomicCheckpoints(), tmp_path / "last.ckpt"
    storage.save_checkpoint(RUN, path)
    child = os.fork()
    if child == 0:  # the limit of a file's size, which fails as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            storage.save_checkpoint({"weights": torch.zeros(100_000)}, path)
        except StorageError as error:
            named = str(path) in str(error) and "File too large" in str(error)
            os._exit(0 if named else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(path)["global_step"] == 3


def test_what_is_no_fault_of_the_disk_stays_what_it_is(tmp_path):
    # the second error is that of Python 3.14
    with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
        AtomicCheckpoints().save_checkpoint({"function": lambda: 0}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def damaged(whole: bytes) -> list[bytes]:
    """Nothing, text, either half, and a weight that is another."""
    half = len(whole) // 2
    place = whole.index(torch.arange(1000.0).numpy().tobytes()) + 2000
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    return [b"", b"hello", whole[:half], whole[half:], changed]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "last.ckpt"
    run = {**RUN, "state_dict": {"weight": torch.arange(1000.0)}}
    AtomicCheckpoints().save_checkpoint(run, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["weight"], torch.arange(1000.0))
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(SetupError, match=rf"ckpt_path '{path}' is damaged or not a"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(SetupError, match=r"other\.ckpt' is not a checkpoint of a run: it has no "):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_damaged_checkpoint_ends_a_run_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["images"])
    (tmp_path / "last.ckpt").write_text("hello")
    config = "--config=examples/images/configs/residual_flow_digits.yaml"
    with pytest.raises(SystemExit, match=r"error: ckpt_path '.*last\.ckpt' is damaged"):
        main(["fit", config, f"--ckpt_path={tmp_path / 'last.ckpt'}"])
