"""A progress bar for the pass in which training images initialise a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.distributions import Transform
from tqdm import tqdm

DELAY = 2.0
"""Seconds before the bar appears: a model that is initialised sooner needs none."""

PASSES = ("_call", "_inverse", "call_and_ladj", "inverse_and_ladj")
"""Methods through which data pass a transform."""


@contextmanager
def initialization_bar(module: nn.Module, delay: float = DELAY) -> Iterator["tqdm[Any]"]:
    """Count the layers of a flow that the first batch has passed, and the seconds for each.

    Args:
        module: The module that contains the flow.
        delay: Seconds before the bar appears.

    Yields:
        The bar.
    """
    layers = [part for part in module.modules() if _is_layer(part)]
    bar = tqdm(
        desc="initialising",
        total=len(layers),
        unit="layer",
        delay=delay,
        disable=rank_zero_only.rank != 0,
    )
    passed: set[nn.Module] = set()  # some layers are passed more than once
    patched = [(part, name) for part in layers for name in PASSES if hasattr(part, name)]
    try:
        for part, name in patched:
            vars(part)[name] = _with_progress(getattr(part, name), part, passed, bar)
        yield bar
    finally:
        for part, name in patched:
            vars(part).pop(name, None)
        bar.close()


def _is_layer(part: nn.Module) -> bool:
    """Return whether a module is a transform that contains no other transform."""
    _, *inside = part.modules()
    return isinstance(part, Transform) and not any(isinstance(p, Transform) for p in inside)


def _with_progress(
    method: Callable[..., Any], layer: nn.Module, passed: set[nn.Module], bar: "tqdm[Any]"
) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        result = method(*arguments)
        if layer not in passed:
            passed.add(layer)
            bar.update()
        return result

    return counted
