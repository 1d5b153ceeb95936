"""Muon beside Adam: steps, schedules, states and what is refused."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.images.muon import MuonAndAdam
from examples.images.optimization import ParametersOf
from examples.images.run_errors import SetupError
from pyro_resflow.nn import LipschitzConv2d, LipschitzLinear
from tests.examples.images.test_runs import run

muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")


def convolution() -> LipschitzConv2d:
    torch.manual_seed(0)
    layer = LipschitzConv2d(2, 3, 3, input_size=(4, 4))
    layer.update()
    return layer


def pull(layer: nn.Module) -> None:
    """Write the gradients of a loss, the same each time."""
    layer.zero_grad()
    images = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    layer(images).square().sum().backward()


@muon
def test_a_convolution_is_a_matrix_and_takes_the_rate_of_the_schedule() -> None:
    layer = convolution()
    before = layer.weight.detach().clone()
    optimizer = MuonAndAdam(ParametersOf(layer), lr=0.5, adam_lr=0.01)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    pull(layer)
    matrix = before.flatten(1).requires_grad_()
    matrix.grad = layer.weight.grad.flatten(1).clone()
    bias = layer.bias.detach().clone()
    optimizer.step()
    torch.optim.Muon([matrix], lr=0.25, weight_decay=0.0).step()
    assert torch.equal(layer.weight.flatten(1), matrix)
    assert not layer.is_current  # the layer sees that its weight has changed
    torch.testing.assert_close((layer.bias - bias).abs(), torch.full((3,), 0.005))


@muon
def test_a_weight_may_move_to_other_memory() -> None:
    layer = convolution()
    other = copy.deepcopy(layer)
    optimizers = [MuonAndAdam(ParametersOf(each)) for each in (layer, other)]
    for step in range(3):
        if step:
            other.weight.data = other.weight.data.clone()
        for each, optimizer in zip((layer, other), optimizers, strict=True):
            pull(each)
            optimizer.step()
        assert torch.equal(layer.weight, other.weight)


@muon
def test_a_saved_state_goes_on_as_before() -> None:
    layer = convolution()
    optimizer = MuonAndAdam(ParametersOf(layer), lr=0.1, adam_lr=0.03)
    for _ in range(3):
        pull(layer)
        optimizer.step()
    other = copy.deepcopy(layer)
    resumed = MuonAndAdam(ParametersOf(other), lr=9.0, adam_lr=9.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        for each, found in ((layer, optimizer), (other, resumed)):
            pull(each)
            found.step()
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


@muon
def test_a_weight_without_a_gradient_stays() -> None:
    layer = convolution()
    optimizer = MuonAndAdam(ParametersOf(layer))
    pull(layer)
    optimizer.step()
    pull(layer)
    layer.weight.grad = None
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer.step()
    assert torch.equal(layer.weight, before)
    assert not torch.equal(layer.bias, bias)


@muon
def test_a_model_without_lipschitz_layers_is_refused() -> None:
    with pytest.raises(SetupError, match=r"Linear has no Lipschitz layer.*torch.optim.Adam"):
        MuonAndAdam(ParametersOf(nn.Linear(2, 2)))


def test_an_older_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(SetupError, match=r"it has no Muon; install torch 2.9 or later"):
        MuonAndAdam(ParametersOf(LipschitzLinear(2, 2)))


MUON = {
    "model.optimizer": "examples.images.muon.MuonAndAdam",
    "model.optimizer.lr": "0.1",
    "model.lr_scheduler": "examples.images.optimization.constant_rate",
}


@muon
@pytest.mark.usefixtures("no_arguments")
def test_a_run_resumes_with_its_moments_at_a_new_rate(tmp_path: Path) -> None:
    cli = run("fit", tmp_path / "first", **MUON)
    (before,) = cli.trainer.optimizers
    again = {
        "ckpt_path": str(tmp_path / "first" / "checkpoints" / "last.ckpt"),
        "model.optimizer.lr": "0.05",
        "trainer.max_epochs": "2",
        "trainer.limit_train_batches": "2",
    }
    cli = run("fit", tmp_path / "second", **{**MUON, **again})
    (after,) = cli.trainer.optimizers
    assert [group["lr"] for group in after.param_groups] == [0.05, 0.03]
    steps = {int(state["step"]) for state in after.state.values() if "step" in state}
    assert steps == {4}
    assert len(before.state) == len(after.state)


@muon
@pytest.mark.usefixtures("no_arguments")
def test_a_checkpoint_of_adam_has_no_momentum_for_muon(tmp_path: Path) -> None:
    run("fit", tmp_path / "first")
    last = str(tmp_path / "first" / "checkpoints" / "last.ckpt")
    with pytest.raises(SystemExit, match=r"MuonAndAdam: it has 2 groups .* checkpoint 1; keep"):
        run("fit", tmp_path / "second", ckpt_path=last, **MUON, **{"trainer.max_epochs": "2"})


@muon
def test_a_shared_weight_takes_one_step() -> None:
    layer = convolution()
    other = copy.deepcopy(layer)
    other.weight = layer.weight
    both, alone = nn.ModuleList([layer, other]), convolution()
    before = layer.weight.detach().clone()
    optimizers = [MuonAndAdam(ParametersOf(each)) for each in (both, alone)]
    for each in (layer, alone):
        each.weight.grad = torch.ones_like(each.weight)
    for optimizer in optimizers:
        optimizer.step()
    assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, alone.weight)


@muon
def test_a_model_of_weights_alone_needs_no_adam() -> None:
    layer = LipschitzLinear(2, 3, bias=False)
    optimizer = MuonAndAdam(ParametersOf(layer))
    assert len(optimizer.param_groups) == 1
    layer.weight.grad = torch.ones_like(layer.weight)
    before = layer.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


@muon
def test_gradients_may_have_any_memory_format_and_weights_not() -> None:
    layer, other = convolution(), convolution()
    optimizers = [MuonAndAdam(ParametersOf(each)) for each in (layer, other)]
    for each, optimizer in zip((layer, other), optimizers, strict=True):
        pull(each)
        if each is other:
            each.weight.grad = each.weight.grad.contiguous(memory_format=torch.channels_last)
        optimizer.step()
    assert torch.equal(layer.weight, other.weight)
    layer.to(memory_format=torch.channels_last)
    with pytest.raises(SetupError, match=r"expected contiguous weights, got .* \(3, 2, 3, 3\)"):
        optimizers[0].step()


@muon
def test_a_copy_steps_as_the_original() -> None:
    layer = convolution()
    optimizer = MuonAndAdam(ParametersOf(layer))
    pull(layer)
    optimizer.step()
    other, copied = copy.deepcopy((layer, optimizer))
    for each, steps in ((layer, optimizer), (other, copied)):
        pull(each)
        steps.step()
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)
