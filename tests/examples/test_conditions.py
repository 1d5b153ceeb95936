"""The command, commit and machine behind a result."""

from __future__ import annotations

import os
import sys

import torch

from examples.conditions import Conditions, command, resuming, without_option


def test_conditions_say_what_was_run(monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare.py", "models", "--only", "[glow, real_nvp]"])
    here = Conditions.here("examples.images.compare")
    assert here.command == "python -m examples.images.compare models --only '[glow, real_nvp]'"
    assert here.command == command("examples.images.compare")
    assert here.commit != ""
    assert here.machine != ""
    assert here.cores == os.cpu_count()
    assert here.threads == torch.get_num_threads()
    assert here.notes()["torch"] == torch.__version__
    assert here.notes()["cores"] == str(here.cores)


def test_a_run_is_resumed_by_its_own_command_line(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    given = ["fit", "--data.source.root", "my data", "--ckpt_path", "old.ckpt"]
    assert resuming("examples.images", given, "runs/last.ckpt") == (
        "OMP_NUM_THREADS=1 .venv/bin/python -m examples.images fit --data.source.root 'my data' "
        "--ckpt_path runs/last.ckpt"
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert resuming("p", [], "last.ckpt") == "python -m p --ckpt_path last.ckpt"


def test_options_are_left_out_with_their_values():
    given = ["--a=1", "--b", "--a", "2", "--ab=3", "--a=4"]
    assert without_option("--a", given) == ["--b", "--ab=3"]
