"""Image models in files."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images import weights
from examples.images.comparison.clock import score
from examples.images.comparison.contenders import CONTENDERS
from examples.images.task import DensityEstimation

SHAPE = (1, 4, 4)


@pytest.mark.parametrize(
    "name", ["glow", "flow_plus_plus_variational_mixture_attention", "monotone", "real_nvp"]
)
def test_a_model_comes_back_with_its_scores(name, tmp_path):
    contender = CONTENDERS[name]
    task = DensityEstimation(contender.flow(SHAPE), 256, dequantizer=contender.dequantizer)
    images = torch.randint(0, 256, (20, *SHAPE), dtype=torch.uint8)
    with torch.no_grad():
        task.bits_per_dim(images)
        for parameter in task.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights.save(tmp_path / "new", task, {"data": "noise"})
    loaded = weights.load(tmp_path / "new", bins=256)
    assert not loaded.training
    assert torch.equal(score(loaded, images, 8, seed=0), score(task, images, 8, seed=0))
    flow = weights.load_flow(tmp_path / "new" / "flow.safetensors")
    noise = torch.randn(3, 16)
    with torch.no_grad():
        assert torch.equal(flow(noise), task.eval().flow(noise))
