"""Parameters found by the last part of their name."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning")

from torch import nn

from examples.images.callbacks.parameter_names import parameters_named


def test_parameters_are_found_by_the_end_of_their_name():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    assert parameters_named(net, ["bias"]) == [net[0].bias, net[1].bias]
    with pytest.raises(ValueError, match="the model has none named magnitude"):
        parameters_named(net, ["bias", "magnitude"])
