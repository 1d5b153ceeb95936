"""What a result was had with."""

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Conditions:
    """What a result was had with.

    Attributes:
        command: The command line.
        commit: The commit of the code, with a plus sign if files differ from it.
        machine: The processor.
        cores: Its cores.
        threads: Threads that computed.
        torch: The version of torch.
        accelerator: The graphics card that is there to compute on, `none` without one.
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
        """Those of this process.

        Args:
            program: The module that was run.
        """
        return cls(
            command=command(program),
            commit=commit(),
            machine=processor(),
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),  # of a type of its own, which no checkpoint takes
            accelerator=accelerator(),
        )

    def notes(self) -> dict[str, str]:
        """For a checkpoint."""
        return {name: str(value) for name, value in asdict(self).items()}


def command(program: str) -> str:
    """Return the command line of this process.

    Args:
        program: The module that was run.
    """
    return shlex.join(["python", "-m", program, *sys.argv[1:]])


def commit() -> str:
    """Return the commit that this file is of, `unknown` outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = _output([*git, "rev-parse", "--short", "HEAD"])
        changed = _output([*git, "status", "--porcelain", "-uno"])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + "+" * bool(changed)


def _output(arguments: list[str]) -> str:
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
