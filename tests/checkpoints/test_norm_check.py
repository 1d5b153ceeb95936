"""Loading warns of flows that are not contractions, and only of these."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pyro_resflow import residual_flow
from pyro_resflow.checkpoints import ContractionWarning, load, save
from pyro_resflow.checkpoints.norm_check import ITERATIONS, _is_within
from pyro_resflow.nn import (
    InducedNorm,
    LipschitzLinear,
    LipschitzMLP,
    SpectralNorm,
    check_contraction,
)


def test_a_flow_that_has_diverged_is_saved_and_warned_of(path: Path) -> None:
    flow = residual_flow(2, 2, [8])
    with torch.no_grad():
        flow.parts[0].net[0].weight.fill_(torch.nan)
    save(flow, path)
    with pytest.warns(ContractionWarning, match=f"{path}: .*nan"):
        load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, certify=False)


def test_norms_of_other_weights_are_warned_of(path: Path) -> None:
    flow = residual_flow(2, 2, [8])
    flow(torch.randn(4, 2))
    with torch.no_grad():
        flow.parts[0].net[0].weight.mul_(30)
        flow(torch.randn(4, 2))
        flow.parts[0].net[0].u.div_(30)
    save(flow, path)
    with pytest.warns(ContractionWarning, match=r"too small for its weights.*'0\.net\.0'"):
        load(path)


def test_induced_norms_are_not_warned_of(path: Path) -> None:
    net = LipschitzMLP(3, [8], norm=InducedNorm.chain(2, 1.5, 0.9))
    with pytest.raises(ValueError, match="certified"):
        check_contraction(net)  # whose bound is too loose
    save(net, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path)


def test_a_number_of_iterations_is_not_believed() -> None:
    """A file may ask for a million million."""
    layer = LipschitzLinear(3, 3, norm=SpectralNorm(max_iterations=10**12))
    iterate, asked = SpectralNorm.iterate, []

    def counted(self: SpectralNorm, *args: Any) -> Any:
        asked.append(self.max_iterations)
        return iterate(self, *args)

    with mock.patch.object(SpectralNorm, "iterate", counted):
        assert _is_within(layer)
    assert asked == [ITERATIONS]
    assert layer.norm.max_iterations == 10**12
