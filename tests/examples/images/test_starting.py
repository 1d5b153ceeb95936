"""Fine-tuning: weights from files, a new optimizer."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images import weights
from examples.images.models import Features, GatedStep, VariationalDequantization
from examples.images.run_errors import SetupError
from examples.images.starting import start_from
from examples.images.task import DensityEstimation, uniform_noise
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.transforms import AffineMap, MarginalGaussianization, initialize


def variational(shape: tuple[int, ...], bins: int) -> VariationalDequantization:
    step = GatedStep(4, 1, AffineMap(), mixing="none", dropout=0.0, mix_channels=False)
    return VariationalDequantization(shape, bins, 1, step, Features(4, 1, dropout=0.0))


def task_of(width: int = 4, *, learned: bool = False) -> DensityEstimation:
    """A task that is initialised from images of its own."""
    flow = ResidualFlow(
        (1, 4, 4),
        (1,),
        network=ConvBlock(width),
        end_blocks=0,
        input_map=MarginalGaussianization(16, learnable=True),
    )
    initialize(flow, torch.rand(32, 1, 4, 4) ** (1 + torch.rand(())))
    return DensityEstimation(flow, 16, dequantizer=variational if learned else uniform_noise)


def are_equal(a: DensityEstimation, b: DensityEstimation) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[name], second[name]) for name in {**first, **second})


@pytest.mark.parametrize("learned", [False, True])
def test_a_task_starts_from_the_files_of_another(learned, tmp_path):
    saved, task = task_of(learned=learned), task_of(learned=learned)
    weights.save(tmp_path, saved, {})
    assert not are_equal(saved, task)
    start_from(task, tmp_path / "flow.safetensors")
    assert are_equal(saved, task)


def test_a_task_starts_from_a_checkpoint(tmp_path):
    saved, task = task_of(), task_of()
    content = {
        "global_step": 7,
        "pytorch-lightning_version": "2",
        "state_dict": saved.state_dict(),
    }
    torch.save(content, tmp_path / "last.ckpt")
    start_from(task, tmp_path / "last.ckpt")
    assert are_equal(saved, task)


def test_files_that_do_not_fit_are_named(tmp_path):
    weights.save(tmp_path, task_of(), {})
    flow = tmp_path / "flow.safetensors"
    with pytest.raises(SetupError, match=r"model.weights: the file's weights are not those of"):
        start_from(task_of(width=5), flow)
    with pytest.raises(SetupError, match=r"model.weights '.*none.ckpt': the file does not exist"):
        start_from(task_of(), tmp_path / "none.ckpt")
    other = flow.rename(tmp_path / "mine.safetensors")
    with pytest.raises(SetupError, match=r"expected a training checkpoint \(.ckpt\) or flow.safe"):
        start_from(task_of(), other)
    other.rename(flow)
    flow.write_bytes(flow.read_bytes()[:-9])
    with pytest.raises(SetupError, match=r"model.weights: .*flow.safetensors"):
        start_from(task_of(), flow)
    (tmp_path / "no.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(SetupError, match=r"model.weights '.*no.ckpt' is damaged or not a checkpo"):
        start_from(task_of(), tmp_path / "no.ckpt")


def test_a_learned_dequantizer_needs_its_file(tmp_path):
    weights.save(tmp_path, task_of(learned=True), {})
    (tmp_path / "dequantizer.safetensors").unlink()
    with pytest.raises(SetupError, match=r"model.weights: .*dequantizer.safetensors"):
        start_from(task_of(learned=True), tmp_path / "flow.safetensors")
