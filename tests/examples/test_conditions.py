"""What a result was had with."""

from __future__ import annotations

import os

import torch

from examples.conditions import Conditions, command


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
