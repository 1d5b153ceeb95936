"""Constraints and noise of every entry of an image."""

from __future__ import annotations

import pytest
import torch

from pyro_resflow.flows import ConvBlock, ResidualFlow


def test_an_image_of_another_range_is_refused_by_a_readable_constraint():
    flow = ResidualFlow((1, 4, 4), blocks=(1, 1), network=ConvBlock(4), end_blocks=0)
    with pytest.raises(ValueError, match=r"support \(Entrywise\(Interval\(.*\), 3\)\)"):
        flow.distribution().log_prob(255 * torch.ones(2, 1, 4, 4))
