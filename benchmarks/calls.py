"""Count the calls inside the package that one evaluation makes.

Run ``python -m benchmarks.calls``. The option ``--functions`` lists how often each function ran.

The counts do not depend on the machine or its load. The program prints, for each case, the number
of calls inside the package (a generator counts once for each value), the number of files of the
called functions, how often a call is in another file than the call before it, and the largest
number of frames of the package on the stack.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import pyro.distributions as dist
import torch

import pyro_resflow
from pyro_resflow import residual_flow
from pyro_resflow.logdet import Krylov, NoTail
from pyro_resflow.nn import LipschitzMLP
from pyro_resflow.transforms import Residual

PACKAGE = str(Path(pyro_resflow.__file__).parent)


@dataclass
class Walk:
    """Counts of the calls that one evaluation makes inside the package.

    Attributes:
        functions: number of calls of each function, by file and name.
        changes: number of calls in another file than the call before.
        depth: largest number of frames of the package on the stack.
    """

    functions: Counter[tuple[str, str]] = field(default_factory=Counter)
    changes: int = 0
    depth: int = 0

    @property
    def calls(self) -> int:
        """Number of calls inside the package."""
        return sum(self.functions.values())

    @property
    def files(self) -> int:
        """Number of files of the called functions."""
        return len({file for file, _ in self.functions})


def name_of(code: CodeType) -> str:
    """The name of a function with its class; without it on Python 3.10, which does not keep it.

    Args:
        code: the function's code.
    """
    return getattr(code, "co_qualname", code.co_name)


def walk_of(call: Callable[[], object]) -> Walk:
    """Count the calls inside the package while a function runs.

    Args:
        call: the function, which runs once.
    """
    walk = Walk()
    last_file, depth = "", 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal last_file, depth
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE):
            return
        if event == "return":
            depth -= 1
        elif event == "call":
            depth += 1
            walk.depth = max(walk.depth, depth)
            walk.changes += bool(last_file) and file != last_file
            walk.functions[file[len(PACKAGE) + 1 :], name_of(frame.f_code)] += 1
            last_file = file

    outside = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(outside)
    return walk


def block_call() -> Callable[[], object]:
    """One residual block in two dimensions: value and log-determinant of a batch."""
    torch.manual_seed(0)
    logdet = Krylov(tail=NoTail())  # a number of products that is not drawn
    block = Residual(LipschitzMLP(2, [32]), logdet=logdet)
    x = torch.randn(8, 2)
    block.call_and_ladj(x)  # measures the norms
    torch.manual_seed(0)
    return lambda: block.call_and_ladj(x)


def flow_call() -> Callable[[], object]:
    """The density of a batch under a flow of two blocks, each followed by an ActNorm."""
    torch.manual_seed(0)
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    flow = residual_flow(2, blocks=2, fast="density")
    density = dist.TransformedDistribution(base, flow)
    first, second = torch.randn(2, 32, 2)
    density.log_prob(first)  # measures the norms and sets the ActNorms
    torch.manual_seed(0)
    return lambda: density.log_prob(second)


CASES = {"call_and_ladj of one block": block_call, "log_prob of two blocks": flow_call}


def main() -> None:
    """Print the counts of all cases."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--functions", action="store_true", help="list the functions of each case")
    show_functions = parser.parse_args().functions
    print(f"{'case':<28}{'calls':>7}{'files':>7}{'changes of file':>17}{'depth':>7}")
    for name, case in CASES.items():
        walk = walk_of(case())
        print(f"{name:<28}{walk.calls:>7}{walk.files:>7}{walk.changes:>17}{walk.depth:>7}")
        if show_functions:
            for (file, function), count in walk.functions.most_common():
                print(f"{count:>8}  {file}: {function}")


if __name__ == "__main__":
    main()
