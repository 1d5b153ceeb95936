"""`make demo` keeps earlier runs; `make docs` installs only the necessary packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAST = "runs/demo/checkpoints/last.ckpt"
# Stands for Python: writes down its arguments; what trains then leaves what such a run leaves.
PYTHON = """#!/bin/sh
printf "%s\\\\n" "$*" >> calls
case "$*" in
*fit_and_test*)
    mkdir -p runs/demo/checkpoints
    touch runs/demo/checkpoints/last.ckpt
    [ -e stopped ] && exit 130
    echo "$*" > runs/demo/report.html
    ;;
*" docs") printf 'mkdocs>=1\\n' ;;
*"Python %d.%d"*) echo "$VENV_VERSION" ;;
esac
"""
THIS_PYTHON = "Python {}.{}".format(*sys.version_info)

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose environment has been made, of programs that only write down their calls."""
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "mkdocs"):
        (binaries / name).write_text(PYTHON)
        (binaries / name).chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tests").mkdir()
    for path in (tmp_path / "pyproject.toml", tmp_path / "tests/constraints-lowest.txt"):
        path.touch()
        os.utime(path, (0, 0))
    for stamp in (".python", ".torch", ".images"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


OUTER = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON", "VENV", "CONSTRAINTS")
"""What a `make test` or `make test-lowest` around these tests may leave in the environment."""


def run_make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in OUTER},
    )


def make(project: Path, *arguments: str, status: int = 0) -> str:
    done = run_make(project, *arguments)
    assert done.returncode == status, done.stderr
    return done.stdout


def calls(project: Path) -> list[str]:
    lines = (project / "calls").read_text().splitlines()
    (project / "calls").unlink()
    return lines


def test_a_second_demo_keeps_the_first_even_if_it_is_stopped(project: Path) -> None:
    make(project, "demo")
    (project / "runs/demo/report.html").write_text("first")
    (project / "stopped").touch()
    assert "The run that was in runs/demo is now in runs/demo.1" in make(project, "demo", status=2)
    assert (project / "runs/demo.1/report.html").read_text() == "first"
    assert (project / "runs/demo.1/checkpoints/last.ckpt").exists()
    assert not (project / "runs/demo/report.html").exists()
    assert not any("--ckpt_path" in call for call in calls(project))


def test_a_demo_that_was_stopped_is_resumed(project: Path) -> None:
    (project / "stopped").touch()
    make(project, "demo", status=2)
    (project / "stopped").unlink()
    assert "Resuming the unfinished run in runs/demo;" in make(project, "demo")
    first, second = calls(project)
    assert second == f"{first} --ckpt_path {LAST}"
    assert list((project / "runs").iterdir()) == [project / "runs/demo"]


def test_every_finished_demo_is_kept(project: Path) -> None:
    for name in ("first", "second", "third"):
        make(project, "demo")
        (project / "runs/demo/report.html").write_text(name)
    kept = {path.parent.name: path.read_text() for path in project.glob("runs/*/report.html")}
    assert kept == {"demo.1": "first", "demo.2": "second", "demo": "third"}


def test_documentation_takes_no_torch(project: Path) -> None:
    (project / ".venv" / ".torch").unlink()
    make(project, "docs")
    listing, installing, building = calls(project)
    assert listing.endswith(" docs")
    assert "install --requirement .venv/.docs.partial" in installing
    assert building == "build --strict"
    assert (project / ".venv/.docs").read_text() == "mkdocs>=1\n"


def test_torch_without_cuda(project: Path) -> None:
    (project / ".venv" / ".torch").unlink()
    make(project, "demo", "CPU=1")
    assert "install --index-url https://download.pytorch.org/whl/cpu torch" in calls(project)[0]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="make test-lowest refuses this Python")
def test_the_lowest_versions_are_installed_into_their_own_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest = project / ".venv-lowest"
    shutil.copytree(project / ".venv", lowest)
    (lowest / ".torch").unlink()
    monkeypatch.setenv("VENV_VERSION", THIS_PYTHON)
    make(project, "test-lowest", f"PYTHON={sys.executable}")
    _, torch, package, suite = calls(project)
    limit = "install --constraint tests/constraints-lowest.txt"
    assert f"{limit} torch>=2.4 torchvision" in torch
    assert f"{limit} --editable .[test]" in package
    assert "-m pytest" in suite
    assert not (project / ".venv/.test").exists()


def test_an_environment_of_another_python_is_not_taken_for_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VENV_VERSION", "Python 2.7")
    done = run_make(project, "test", f"PYTHON={sys.executable}")
    assert done.returncode == 2
    assert f".venv was made by Python 2.7, which PYTHON={sys.executable} is not" in done.stderr
    assert "VENV=.venv-other" in done.stderr
    monkeypatch.setenv("VENV_VERSION", THIS_PYTHON)
    make(project, "test", f"PYTHON={sys.executable}")
    assert any("-m pytest" in call for call in calls(project))
