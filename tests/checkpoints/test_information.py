from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from pyro_resflow import residual_flow
from pyro_resflow.checkpoints import CorruptCheckpointError, info, save
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.logdet import Exact, PowerSeries
from pyro_resflow.nn import LipschitzMLP
from pyro_resflow.transforms import set_logdet
from tests.checkpoints.forgeries import reference_file, write_old


def test_ours(tmp_path: Path) -> None:
    flow = ResidualFlow((1, 4, 4), (1,), network=ConvBlock(4), end_blocks=0, logdet=PowerSeries(7))
    set_logdet(flow, Exact())
    save(flow, tmp_path / "flow.safetensors", notes={"bits/dim": "1.23"})
    with mock.patch.object(LipschitzMLP, "__init__", side_effect=AssertionError):
        found = info(tmp_path / "flow.safetensors")
    assert found.kind == "pyro_resflow"
    assert found.notes == {"bits/dim": "1.23"}
    assert found.shapes == {n: tuple(t.shape) for n, t in flow.state_dict().items()}
    assert found.numbers == sum(t.numel() for t in flow.state_dict().values())
    lines = str(found).splitlines()
    assert lines[0] == "format: pyro_resflow, version 1"
    assert "bits/dim: 1.23" in lines
    assert "set since it was made: transform.2.0.logdet" in lines
    shown = str(found)
    for part in (
        "flows.ResidualFlow(\n",
        "event_shape=(1, 4, 4),",
        "blocks=(1,),",
        "activation=nn.LipSwish,",
        "logdet.PowerSeries(terms=7, ",
    ):
        assert part in shown
    assert max(map(len, lines)) <= 100


def test_the_references() -> None:
    found = info(reference_file("imagenet64_tiny"))
    assert found.kind == "reference"
    assert found.flow["act"] == "elu"
    assert found.details["moving average"] == "yes"
    assert found.shapes["transforms.0.chain.2.nnet.0.weight"] == (8, 12, 3, 3)
    assert "  nblocks: 1-2" in str(found).splitlines()


def test_a_file_without_checksums_says_so(tmp_path: Path) -> None:
    assert "checksums" not in str(info(reference_file("imagenet64_tiny")))
    old = write_old(tmp_path / "old.pth", "imagenet64_tiny")
    first, *_ = str(info(old)).splitlines()
    assert first.endswith("'s, as before torch 1.6: without checksums")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with pytest.raises(CorruptCheckpointError, match="text: "):
        info(tmp_path / "text")


def test_a_flow_of_vectors(tmp_path: Path) -> None:
    save(residual_flow(2, 1, [4]), tmp_path / "flow.safetensors")
    assert "net=nn.LipschitzMLP(" in str(info(tmp_path / "flow.safetensors"))
