"""The command, commit and machine behind a result."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Conditions:
    """The command, commit and machine behind a result.

    Attributes:
        command: The command line.
        commit: The commit of the code, with a plus sign if files have changed since.
        machine: The processor.
        cores: Number of its cores.
        threads: Number of threads of torch.
        torch: The version of torch.
        accelerator: The graphics card, `none` without one.
    """

    command: str
    commit: str
    machine: str
    cores: int
    threads: int
    torch: str
    accelerator: str = "none"

    @classmethod
    def here(cls, program: str) -> "Conditions":
        """Return the conditions of this process.

        Args:
            program: The module that Python runs.
        """
        return cls(
            command=command(program),
            commit=commit(),
            machine=processor(),
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),  # checkpoints refuse torch's own string type
            accelerator=accelerator(),
        )

    def notes(self) -> dict[str, str]:
        """Return the conditions as notes of a checkpoint."""
        return {name: str(value) for name, value in asdict(self).items()}


def command(program: str) -> str:
    """Return the command line of this process.

    Args:
        program: The module that Python runs.
    """
    return shlex.join(["python", "-m", program, *sys.argv[1:]])


def resuming(program: str, arguments: Sequence[str], checkpoint: str | Path) -> str:
    """Return the command line that resumes a run, for the shell that started it.

    Args:
        program: The module that Python runs.
        arguments: Its arguments.
        checkpoint: The checkpoint to resume from; it replaces the one in the arguments.
    """
    threads = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ]
    kept = without_option("--ckpt_path", arguments)
    return shlex.join(
        [*threads, interpreter(), "-m", program, *kept, "--ckpt_path", str(checkpoint)]
    )


def interpreter() -> str:
    """Return the command that starts this Python from the current folder."""
    found = shutil.which("python")
    if found is not None and os.path.abspath(found) == sys.executable:
        return "python"
    here = Path.cwd()
    running = Path(sys.executable)
    return str(running.relative_to(here) if running.is_relative_to(here) else running)


def without_option(option: str, arguments: Sequence[str]) -> list[str]:
    """Remove an option and its value, written `--option value` or `--option=value`."""
    kept = list(arguments)
    while option in kept:
        place = kept.index(option)
        del kept[place : place + 2]
    return [argument for argument in kept if not argument.startswith(f"{option}=")]


def commit() -> str:
    """Return the commit of this file's repository, `unknown` outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = _command_output([*git, "rev-parse", "--short", "HEAD"])
        changed = _command_output([*git, "status", "--porcelain", "-uno"])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + "+" * bool(changed)


def _command_output(arguments: list[str]) -> str:
    return subprocess.check_output(arguments, text=True, stderr=subprocess.DEVNULL).strip()


def accelerator() -> str:
    """Return the name of the first graphics card, `none` without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
