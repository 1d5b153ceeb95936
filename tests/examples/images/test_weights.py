"""Image models in files."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images import weights
from examples.images.comparison.clock import score
from examples.images.comparison.contenders import CONTENDERS
from examples.images.run_errors import SetupError
from examples.images.task import DensityEstimation
from pyro_resflow.checkpoints import NotRebuildableError

SHAPE = (1, 4, 4)


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_model_comes_back_with_its_scores(name, tmp_path):
    contender = CONTENDERS[name]
    task = DensityEstimation(contender.flow(SHAPE), 256, dequantizer=contender.dequantizer)
    images = torch.randint(0, 256, (20, *SHAPE), dtype=torch.uint8)
    with torch.no_grad():
        task.bits_per_dim(images)
        for parameter in task.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights.save(tmp_path / "new", task, {"data": "noise"})
    loaded = weights.load(tmp_path / "new")
    assert not loaded.training
    assert loaded.bins == 256
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        weights.FLOW,
        weights.DEQUANTIZER,
    }
    assert torch.equal(score(loaded, images, 8, seed=0), score(task, images, 8, seed=0))
    flow = weights.load_part(tmp_path / "new" / weights.FLOW)
    noise = torch.randn(3, 16)
    with torch.no_grad():
        assert torch.equal(flow(noise), task.eval().flow(noise))


class Own(torch.nn.Module):
    """Of which no file can say how it is made."""


def test_both_parts_are_written_or_neither(tmp_path):
    task = DensityEstimation(CONTENDERS["glow"].flow(SHAPE), 256)
    weights.save(tmp_path, task, {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    task.flow = CONTENDERS["real_nvp"].flow(SHAPE)
    task.dequantizer = Own()
    with pytest.raises(NotRebuildableError):
        weights.save(tmp_path, task, {})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_parts_of_two_runs_are_not_put_together(tmp_path):
    task = DensityEstimation(CONTENDERS["glow"].flow(SHAPE), 256)
    for name in ("one", "other"):
        weights.save(tmp_path / name, task, {"data": name})
    (tmp_path / "one" / weights.FLOW).replace(tmp_path / "other" / weights.FLOW)
    with pytest.raises(SetupError, match=r"other: flow\S+ and dequantizer\S+ are from"):
        weights.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        weights.load(tmp_path / "one")


def test_a_part_in_the_others_place_is_named(tmp_path):
    weights.save(tmp_path, DensityEstimation(CONTENDERS["glow"].flow(SHAPE), 256), {})
    flow = (tmp_path / weights.FLOW).read_bytes()
    (tmp_path / weights.DEQUANTIZER).write_bytes(flow)
    with pytest.raises(SetupError, match=r"a dequantization in dequantizer\S+, got Glow and Glow"):
        weights.load(tmp_path)
