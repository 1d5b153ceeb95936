"""Reading a changed file gives a flow or a documented error."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from pyro_resflow.checkpoints import CheckpointError, info, load, load_reference, save
from pyro_resflow.flows import ConvBlock, MLPBlock, ResidualFlow
from pyro_resflow.logdet import Krylov
from pyro_resflow.transforms import set_logdet
from tests.checkpoints.forgeries import forge, write_old
from tests.checkpoints.mutations import (
    Mutate,
    legacy_mutator,
    safetensors_mutator,
    torch_mutator,
)

ROOT = Path(__file__).parents[2]

REFERENCE = "imagenet64_tiny"
"""The smaller one of the reference implementation's files."""

MEMORY = 2**30
"""What a reader may take on top of what torch takes by itself, in bytes: the files have 400 kB."""


def small_flow(folder: Path) -> Path:
    flow = ResidualFlow((1, 4, 4), [1], network=ConvBlock(4), end_network=MLPBlock((4,)))
    set_logdet(flow, Krylov(3))
    save(flow, folder / "source", notes={"data": "none"})
    return folder / "source"


SOURCES: dict[str, Callable[[Path], Mutate]] = {
    "safetensors": lambda folder: safetensors_mutator(small_flow(folder)),
    "zip": lambda folder: torch_mutator(forge(folder / "source", lambda saved: None, REFERENCE)),
    "legacy": lambda folder: legacy_mutator(write_old(folder / "source", REFERENCE)),
}


def outcome(read: Callable[[Path], object], path: Path) -> str:
    """The class of the error that comes of reading a file, once it has been looked at."""
    try:
        str(read(path))
    except (CheckpointError, OSError) as error:
        message = str(error)
        assert message.count(str(path)) == 1
        assert message.isprintable()
        assert len(message) < 3000
        return type(error).__name__
    return "whole"


def outcomes(kind: str, folder: Path, seeds: range) -> Counter[str]:
    """How often reading mutated files ends how."""
    mutate, path, found = SOURCES[kind](folder), folder / "mutated", Counter[str]()
    for seed in seeds:
        path.write_bytes(mutate(Random(seed)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for read in (load, load_reference, info):
                try:
                    found[outcome(read, path)] += 1
                except BaseException:
                    print(f"{kind}, seed {seed}, {read.__name__}")
                    raise
    return found


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_mutated_files_end_in_a_flow_or_a_documented_error(kind: str, tmp_path: Path) -> None:
    found = outcomes(kind, tmp_path, range(100))
    assert found["CorruptCheckpointError"] > 100  # each is of another kind for one of the readers
    assert found["whole"] > 0  # and not every change does harm


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_thousands_of_mutated_files_in_bounded_memory(kind: str, tmp_path: Path) -> None:
    code = f"""
        import resource
        from pathlib import Path
        from tests.checkpoints.test_mutations import MEMORY, outcomes

        outcomes({kind!r}, Path({str(tmp_path)!r}), range(1))  # what torch needs
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(outcomes({kind!r}, Path({str(tmp_path)!r}), range(1000, 4000)))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "MemoryError" not in run.stdout
