"""Objects as JSON and back."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyro_resflow.checkpoints import NotRebuildableError
from pyro_resflow.checkpoints.decoding import Decoder
from pyro_resflow.checkpoints.encoding import Encoder
from pyro_resflow.flows import ConvBlock
from pyro_resflow.logdet import Exact, Krylov
from pyro_resflow.nn import CLipSwish, LipSwish


def again(value: Any) -> Any:
    encoder = Encoder()
    node = json.loads(json.dumps(encoder.encode(value), allow_nan=False))
    return Decoder(encoder.tensors, encoder.own).decode(node, "value")


VALUES = [
    None,
    True,
    3,
    -(10**20),
    0.1,
    math.inf,
    -math.inf,
    "text",
    [],
    [1, [2.5, None]],
    (),
    (1,),
    (1, [2, (3,)]),
    torch.Size((2, 3)),
    {"a": 1, "b": (2,)},
    {1: "keys that are no texts", (2, 3): None},
    {"ref": 1},
    torch.float64,
    torch.bfloat16,
    LipSwish,
    [LipSwish, CLipSwish],
    ConvBlock(7, (3, 3), CLipSwish, 0.5),
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_come_back_as_they_were(value: Any) -> None:
    found = again(value)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number() -> None:
    assert math.isnan(again(math.nan))


def test_what_stands_for_numbers_becomes_numbers() -> None:
    assert again([np.int64(3), np.float32(0.5), range(3)]) == [
        3,
        0.5,
        [0, 1, 2],
    ]


def test_partials() -> None:
    found = again(partial(CLipSwish, feature_dim=-3))
    assert (found.func, found.args, found.keywords) == (CLipSwish, (), {"feature_dim": -3})
    found = again(partial(partial(ConvBlock, 3), activation=LipSwish))
    assert found() == ConvBlock(3, activation=LipSwish)


def test_tensors_and_parameters() -> None:
    tensor, parameter = torch.arange(3), nn.Parameter(torch.ones(2))
    found = again([tensor, parameter])
    assert torch.equal(found[0], tensor)
    assert torch.equal(found[1], parameter)
    assert isinstance(found[1], nn.Parameter)
    assert not isinstance(found[0], nn.Parameter)


def test_what_was_one_object_is_one_again() -> None:
    one, other, tensor = Krylov(), Krylov(), torch.ones(2)
    found = again([one, other, one, (one, tensor), {"key": tensor}])
    assert found[0] is found[2]
    assert found[0] is found[3][0]
    assert found[0] is not found[1]
    assert found[3][1] is found[4]["key"]


def test_an_object_inside_another_is_one_with_the_same_outside() -> None:
    probe = Krylov().probe
    found = again([Krylov(probe=probe), probe])
    assert found[0].probe is found[1]


def test_objects_that_are_gone_are_not_mistaken_for_others() -> None:
    encoder = Encoder()
    nodes = [encoder.encode(Exact(chunk_size=i + 1)) for i in range(20)]  # each freed at once
    assert [node["arguments"]["chunk_size"] for node in nodes] == list(range(1, 21))


def test_defaults_are_written_out() -> None:
    """A file goes on meaning the same when a later release has another default."""
    assert Encoder().encode(Exact())["arguments"] == {"dtype": None, "chunk_size": None}
    arguments = Encoder().encode(ConvBlock())["arguments"]
    assert arguments["coefficient"] == 0.98
    assert arguments["activation"] == {"type": "nn.LipSwish"}
    assert Encoder().encode(Krylov())["arguments"]["tail"]["arguments"] == {"ratio": 1 / 3}


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), iter([1]), 1j, lambda: 1, math.sin])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(NotRebuildableError, match="cannot be written to a file"):
        Encoder().encode([value])
