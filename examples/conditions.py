"""What a result was had with."""

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


def resuming(program: str, arguments: Sequence[str], checkpoint: str | Path) -> str:
    """Return the command line that resumes a run, to be pasted into the shell that started it.

    Args:
        program: The module that was run.
        arguments: Its arguments.
        checkpoint: What to resume from, in place of what the run itself was resumed from.
    """
    threads = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ]
    kept = without_option("--ckpt_path", arguments)
    return shlex.join(
        [*threads, interpreter(), "-m", program, *kept, "--ckpt_path", str(checkpoint)]
    )


def interpreter() -> str:
    """Return how a shell in this folder calls this Python."""
    found = shutil.which("python")
    if found is not None and os.path.abspath(found) == sys.executable:
        return "python"
    here = Path.cwd()
    running = Path(sys.executable)
    return str(running.relative_to(here) if running.is_relative_to(here) else running)


def without_option(option: str, arguments: Sequence[str]) -> list[str]:
    """Leave out an option with its value, written `--option value` or `--option=value`."""
    kept = list(arguments)
    while option in kept:
        place = kept.index(option)
        del kept[place : place + 2]
    return [argument for argument in kept if not argument.startswith(f"{option}=")]


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
