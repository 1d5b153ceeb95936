"""The code of mapped images, against the entropies of normal processes."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_resflow.transforms.normalization.code_length import code_length


def test_independent_entries_have_the_mean_of_their_log_deviations() -> None:
    torch.manual_seed(0)
    deviations = torch.tensor([0.5, 3.0])[:, None, None]
    y = deviations * torch.randn(400, 2, 8, 8)
    found = code_length(y, torch.full_like(y, 0.25))
    # the log of a deviation has an error of 1/sqrt(2 n), with n of 19,600
    assert found == pytest.approx(0.5 * math.log(1.5) - 0.25, abs=3 / math.sqrt(2 * 19_600))


def test_a_row_that_depends_on_its_left_neighbours_takes_its_share_of_the_gain() -> None:
    torch.manual_seed(0)
    correlation = 0.9
    y = torch.randn(3000, 1, 1, 20)
    for column in range(1, 20):
        innovation = math.sqrt(1 - correlation**2) * y[..., column]
        y[..., column] = correlation * y[..., column - 1] + innovation
    found = code_length(y, torch.zeros_like(y))
    assert found == pytest.approx(0.6 * math.log(1 - correlation**2) / 2, abs=0.01)


def test_a_channel_is_predicted_by_those_before() -> None:
    torch.manual_seed(0)
    first = torch.randn(3000, 1, 3, 3)
    y = torch.cat([first, first + 0.1 * torch.randn(3000, 1, 3, 3)], 1)
    found = code_length(y, torch.zeros_like(y))
    # alone: both have a deviation near 1; given: 1 and 0.1
    alone, given = math.log(1.01) / 4, math.log(0.1) / 2
    assert found == pytest.approx(0.4 * alone + 0.6 * given, abs=0.01)
