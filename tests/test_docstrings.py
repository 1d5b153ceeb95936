"""The examples in the docstrings run as printed."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import sys
from collections.abc import Iterator

import pyro
import pytest

import pyro_resflow
from pyro_resflow.extras import MissingExtraError

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> Iterator[str]:
    yield pyro_resflow.__name__
    for module in pkgutil.walk_packages(pyro_resflow.__path__, f"{pyro_resflow.__name__}."):
        yield module.name


@pytest.mark.parametrize("name", list(modules()))
def test_docstring_examples_run(name: str) -> None:
    pyro.clear_param_store()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")  # examples draw on the current axes
    try:
        module = importlib.import_module(name)
    except MissingExtraError as error:
        pytest.skip(str(error))
    failures, _ = doctest.testmod(module, optionflags=OPTIONS)
    assert failures == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    names = (name for name in modules() if ".interop." not in name)
    found = (finder.find(importlib.import_module(name)) for name in names)
    assert sum(bool(test.examples) for tests in found for test in tests) > 10
