"""Time this package's flows of vectors as another checkout has them, in a second process."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.operations import Size

from .machine import ROOT

WORKER = Path(__file__).with_name("other_checkout_worker.py")


class OtherCheckout:
    """A process that runs the flows of :mod:`benchmarks.operations` with another commit's code.

    The process waits for requests, so that its runs can alternate with those of this process.

    Args:
        path: the root of the checkout.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "pyro_resflow" / "__init__.py").is_file():
            raise ValueError(
                f"against: expected the root of a checkout of this package, got {path}, which "
                "has no pyro_resflow/__init__.py; make one by `git worktree add PATH COMMIT`."
            )
        found = subprocess.run(
            ["git", "-C", str(path), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
        )
        self.name = f"pyro-resflow at {found.stdout.strip() or path.name}"
        settings = {
            "checkout": str(path.resolve()),
            "flows": str(ROOT / "benchmarks" / "operations.py"),
            "threads": torch.get_num_threads(),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def clock(self, size: Size, run: str, times: int, points: int = 0) -> partial[float]:
        """Return a function that runs something there and returns its seconds for each time.

        Args:
            size: the size of the flow.
            run: ``"training"``, ``"sample"`` or ``"log_prob"``.
            times: how often it runs.
            points: samples, or points to score.
        """
        return partial(
            self.ask, {"size": list(size), "run": run, "times": times, "points": points}
        )

    def ask(self, request: dict[str, Any]) -> float:
        """Send a request; return the seconds.

        Raises:
            RuntimeError: if the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"against: the process of the other checkout ended with {self.process.wait()}; "
                "its message is above."
            )
        return float(answer)

    def close(self) -> None:
        """End the process."""
        with self.process:  # closes its pipes and waits
            pass
