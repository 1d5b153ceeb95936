"""Saving replaces a file in one step, also on full disks and under unusual names."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from pyro_resflow import residual_flow
from pyro_resflow.checkpoints import info, load, replacing, save
from pyro_resflow.checkpoints.__main__ import main
from pyro_resflow.checkpoints.replacing import replaced
from pyro_resflow.transforms import ActNorm

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more into a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_what_does_not_fit_is_an_os_error_that_names_the_file(size: int, saved: Path) -> None:
    before = saved.read_bytes()
    with files_of_at_most(size), pytest.raises(OSError, match="too large") as caught:
        save(residual_flow(3, 4, [64]), saved)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(saved))
    assert saved.read_bytes() == before
    assert names(saved.parent) == [saved.name]


@pytest.mark.parametrize("step", ["flush", "fsync", "replace"])
def test_a_full_disk_is_the_documented_error(step: str, saved: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    before = saved.read_bytes()
    where = f"os.{step}" if step != "flush" else "files.pieces"
    package = "pyro_resflow.checkpoints" + ("" if step == "flush" else ".replacing")
    with (
        mock.patch(f"{package}.{where}", side_effect=full),
        pytest.raises(OSError, match="No space") as caught,
    ):
        save(ActNorm(2), saved)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(saved))
    assert saved.read_bytes() == before
    assert names(saved.parent) == [saved.name]


def test_a_full_disk_is_a_line_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ROOT / "tests" / "data" / "reference" / "mnist_tiny.pth"
    with files_of_at_most(1000):
        assert main(["convert", str(source), str(tmp_path / "flow")]) == 1
    message = f"error: [Errno {errno.EFBIG}] File too large: '{tmp_path / 'flow'}'\n"
    assert capsys.readouterr().err == message
    assert names(tmp_path) == []


def test_what_is_being_written_is_left_alone(saved: Path) -> None:
    """A lock is that of a file which was opened once: in this process as in any other."""
    abandoned = saved.with_name(f"{replacing.START}0{replacing.END}")
    abandoned.touch()
    with replaced(saved) as slow:
        slow.write(b"slowly ")
        assert not abandoned.exists()
        save(ActNorm(2), saved.with_name("other.safetensors"))
        with replaced(saved) as fast:
            fast.write(b"in between")
        assert saved.read_bytes() == b"in between"
        assert len(names(saved.parent)) == 3
        slow.write(b"written")
    assert saved.read_bytes() == b"slowly written"
    assert names(saved.parent) == [saved.name, "other.safetensors"]


def test_one_that_was_taken_for_abandoned_is_made_again(tmp_path: Path) -> None:
    taken: list[Path] = []
    lock = replacing._lock

    def locks(file: object) -> None:
        if not taken:  # another process has been there between its making and its lock
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        lock(file)

    with mock.patch.object(replacing, "_lock", locks), replaced(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert names(tmp_path) == ["a"]


def test_file_systems_without_locks(tmp_path: Path) -> None:
    abandoned = tmp_path / f"{replacing.START}0{replacing.END}"
    abandoned.touch()
    without = OSError(errno.ENOLCK, "No locks available")
    with mock.patch.object(replacing, "_lock", side_effect=without):
        save(ActNorm(2), tmp_path / "flow")
    assert load(tmp_path / "flow").num_features == 2
    assert abandoned.exists()  # there is no way to tell


@pytest.mark.parametrize(
    "name",
    [b"a" * 255, b"caf\xe9 \xff.safetensors", "\u6d41".encode() * 85, b"a\nb \x1b[31m [*?]"],
)
def test_long_and_strange_names(
    name: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / os.fsdecode(name)
    for features in (2, 3):  # a new file, and one that is there
        save(ActNorm(features), path, notes={"name": path.name})
        assert load(path).num_features == features
    assert info(path).notes == {"name": path.name}
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    assert main(["info", str(path)]) == 0
    path.write_bytes(b"no flow")
    assert main(["info", str(path)]) == 1
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert text.replace("\n", "").isprintable()
        text.encode()


def test_the_same_flow_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save(load(saved), saved, notes={"b": "2", "a": "1"})
    expected = saved.read_bytes()
    flow = load(saved)
    for _ in range(20):
        save(flow, tmp_path / "again", notes={"b": "2", "a": "1"})
        assert (tmp_path / "again").read_bytes() == expected


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    code = """
        import sys
        from pyro_resflow import checkpoints
        flow = checkpoints.load(sys.argv[1])
        checkpoints.save(flow, sys.argv[2], notes={"b": "2", "a": "1"})
    """
    save(load(saved), saved, notes={"b": "2", "a": "1"})
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(saved), str(tmp_path / "again")],
        cwd=ROOT,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},  # which decides the order of sets
    )
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_nobody_else_may_read_a_file_of_ones_own_while_it_is_written(saved: Path) -> None:
    saved.chmod(0o600)
    with replaced(saved):
        modes = [each.stat().st_mode & 0o777 for each in saved.parent.iterdir()]
    assert modes == [0o600, 0o600]


@pytest.mark.usefixtures("interruptible")
def test_a_signal_on_the_way_leaves_nothing_behind(saved: Path) -> None:
    before = saved.read_bytes()

    def interrupted() -> None:
        with replaced(saved) as file:
            file.write(b"half")
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert saved.read_bytes() == before
    assert names(saved.parent) == [saved.name]
