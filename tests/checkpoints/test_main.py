from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_resflow.checkpoints import info, load
from pyro_resflow.checkpoints.__main__ import main
from tests.checkpoints.forgeries import (
    Calls,
    reference_file,
    reference_values,
    write_old,
    zipped,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("parameters", ["raw", "ema"])
def test_convert(parameters: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "flow.safetensors"
    options = ["--raw"] if parameters == "raw" else []
    assert main(["convert", str(reference_file("mnist_tiny")), str(target), *options]) == 0
    expected = reference_values("mnist_tiny")
    with torch.no_grad():
        z = load(target).inv(expected["x"].float())
    torch.testing.assert_close(z.double(), expected[f"z_{parameters}"], atol=1e-4, rtol=0)
    assert "6,999 parameters" in capsys.readouterr().out
    notes = info(target).notes
    assert notes["source"] == "mnist_tiny.pth, of the reference implementation"
    assert ("moving average" in notes["parameters"]) == (parameters == "ema")


def test_warnings_are_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write_old(tmp_path / "old\n.pth", "imagenet64_tiny")
    assert main(["convert", str(old), str(tmp_path / "flow")]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"warning: {tmp_path}/old\\n.pth: the format of files before torch")
    assert said.err.count("\n") == said.out.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(unbuffered: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-m", "pyro_resflow.checkpoints", "info", reference_file("mnist_tiny")],
        cwd=ROOT,
        check=True,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writer)
    assert run.stderr == ""


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(reference_file("mnist_tiny"))]) == 0
    assert "act: swish" in capsys.readouterr().out


def test_errors_are_a_line_and_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pickle

    trace = tmp_path / "trace"
    evil = zipped(tmp_path / "evil.pth", pickle.dumps(Calls(os.system, f"touch {trace}"), 2))
    target = tmp_path / "flow.safetensors"
    for arguments in (
        ["info", str(evil)],
        ["info", str(tmp_path / "nowhere")],
        ["convert", str(evil), str(target)],
        ["convert", str(reference_file("mnist_tiny")), str(tmp_path / "nowhere" / "flow")],
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert not trace.exists()
    assert not target.exists()


def test_without_a_command_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "convert" in capsys.readouterr().err


def test_as_a_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pyro_resflow.checkpoints", "--help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "python -m pyro_resflow.checkpoints" in run.stdout
