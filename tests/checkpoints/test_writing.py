"""Files are written completely or not at all."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import pytest
import torch

from pyro_resflow import checkpoints, residual_flow
from pyro_resflow.checkpoints import (
    load,
    save,
)
from pyro_resflow.transforms import ActNorm
from tests.checkpoints.roundtrips import parts_of

ROOT = Path(__file__).parents[2]


def test_notes_are_texts(tmp_path: Path) -> None:
    save(ActNorm(2), tmp_path / "n.safetensors", notes={"score": 1.5, "folder": tmp_path})
    assert checkpoints.info(tmp_path / "n.safetensors").notes == {
        "score": "1.5",
        "folder": str(tmp_path),
    }


def test_it_is_a_safetensors_file_with_the_names_of_a_state_dict(saved: Path) -> None:
    metadata, tensors = parts_of(saved)
    assert metadata["format"] == "pt"
    assert json.loads(metadata["pyro_resflow"])["version"] == 1
    flow = load(saved)
    assert tensors.keys() == flow.state_dict().keys()
    other = residual_flow(2, 1, [4])
    other.load_state_dict(tensors)  # for whoever has no use for the rest
    x = torch.randn(3, 2)
    assert torch.equal(other(x), flow(x))


def test_a_flow_without_tensors(tmp_path: Path) -> None:
    from pyro_resflow.transforms import Squeeze

    save(Squeeze(3), tmp_path / "s.safetensors")
    assert load(tmp_path / "s.safetensors").factor == 3


class CrashError(RuntimeError):
    """The power goes off."""


@pytest.mark.parametrize(
    "step",
    [
        "pyro_resflow.checkpoints.files.pieces",
        "pyro_resflow.checkpoints.replacing.os.fsync",
        "pyro_resflow.checkpoints.replacing.os.replace",
    ],
)
def test_a_failure_leaves_the_old_file_and_nothing_else(step: str, saved: Path) -> None:
    before = saved.read_bytes()
    with mock.patch(step, side_effect=CrashError), pytest.raises(CrashError):
        save(residual_flow(3), saved)
    assert saved.read_bytes() == before
    assert [each.name for each in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_process_that_is_killed_leaves_the_old_file_whole(step: str, saved: Path) -> None:
    before = saved.read_bytes()
    code = f"""
        import os, signal
        from pyro_resflow import checkpoints, residual_flow

        def killed(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        os.{step} = killed
        checkpoints.save(residual_flow(3), {str(saved)!r})
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=False)
    assert run.returncode == -signal.SIGKILL
    assert saved.read_bytes() == before
    load(saved)
    assert len(list(saved.parent.iterdir())) == 2  # what was half written
    save(ActNorm(2), saved.with_name("other.safetensors"))
    assert sorted(saved.parent.iterdir()) == [saved, saved.with_name("other.safetensors")]


def test_the_bytes_are_on_disk_before_the_file_is_replaced(saved: Path) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    with (
        mock.patch.object(os, "fsync", side_effect=lambda fd: (order.append("fsync"), fsync(fd))),
        mock.patch.object(
            os, "replace", side_effect=lambda *a: (order.append("replace"), replace(*a))
        ),
    ):
        save(residual_flow(3), saved)
    assert order == ["fsync", "replace", "fsync"]  # and the folder after it


def test_permissions_of_a_file_that_is_there_are_kept(saved: Path) -> None:
    saved.chmod(0o640)
    save(residual_flow(3), saved)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o640


def test_permissions_of_a_new_file_are_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    save(ActNorm(2), tmp_path / "new.safetensors")
    modes = [(tmp_path / name).stat().st_mode for name in ("usual", "new.safetensors")]
    assert modes[0] == modes[1]


def test_a_link_goes_on_pointing_to_the_file(saved: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest.safetensors"
    link.symlink_to(saved.name)
    save(ActNorm(5), link)
    assert link.is_symlink()
    assert load(saved).num_features == 5


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"the folder .*nowhere does not exist\. Create it first"
    ):
        save(ActNorm(2), tmp_path / "nowhere" / "flow.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        save(ActNorm(2), tmp_path / "flow.safetensors")
