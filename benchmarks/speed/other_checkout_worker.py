"""The process of :mod:`benchmarks.speed.other_checkout`; it imports nothing of this checkout.

It reads a request a line, and writes a number of seconds for each.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

Run = Callable[[], object]


def imported(name: str, path: str) -> ModuleType:
    """Import a module from its file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Answer requests until the input ends."""
    settings = json.loads(sys.argv[1])
    sys.path[0] = settings["checkout"]  # in place of the folder of this file
    import torch

    torch.set_num_threads(settings["threads"])
    flows = imported("flows_of_vectors", settings["flows"])
    built: dict[str, dict[str, Run]] = {}
    for given in sys.stdin:
        request: dict[str, Any] = json.loads(given)
        key = json.dumps([request["size"], request["points"]])
        if key not in built:
            size = flows.Size(*(tuple(v) if isinstance(v, list) else v for v in request["size"]))
            built[key] = flows.runs(size, request["points"])
        run = built[key][request["run"]]
        start = time.perf_counter()
        for _ in range(request["times"]):
            run()
        print((time.perf_counter() - start) / request["times"], flush=True)


if __name__ == "__main__":
    main()
