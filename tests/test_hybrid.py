"""Hybrid models: one pass for density and classes, in PyTorch and in Pyro, for any image flow."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_resflow import checkpoints
from pyro_resflow.flows import (
    ConvBlock,
    FlowPlusPlus,
    Glow,
    ImageFlow,
    IResNet,
    RealNVP,
    ResidualFlow,
)
from pyro_resflow.hybrid import Hybrid, feature_shapes
from pyro_resflow.logdet import Exact, LogDetEstimator
from pyro_resflow.nn import ConvConditioner, GatedAttentionConditioner, ResidualConditioner
from pyro_resflow.transforms import ActNorm, CouplingStep, Flatten, LogisticMixtureMap


class CountingLogDet(LogDetEstimator):
    """An estimator that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def value_and_trace(self, net, x, function):
        self.calls += 1
        return Exact().value_and_trace(net, x, function)


def residual_flow(**options: object) -> ResidualFlow:
    options = {"network": ConvBlock(4), "end_blocks": 1, "alpha": None, **options}
    return ResidualFlow((1, 8, 8), (1, 1), **options)


FLOWS = {
    "residual": residual_flow,
    "factored_out": lambda: residual_flow(squeeze_first=True, factor_out=True),
    "i_resnet": lambda: IResNet((1, 8, 8), (1, 1), network=ConvBlock(4)),
    "real_nvp": lambda: RealNVP((1, 8, 8), network=ResidualConditioner(4, blocks=1), growth=2),
    "glow": lambda: Glow((1, 8, 8), (1, 1), network=ConvConditioner(4)),
    "flow_plus_plus": lambda: FlowPlusPlus(
        (1, 8, 8),
        ((0, 1), (1, 1)),
        step=CouplingStep(GatedAttentionConditioner(8, 1), partial(LogisticMixtureMap, 2)),
    ),
}


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_any_image_flow_is_scored_classified_and_trained(name: str) -> None:
    hybrid = Hybrid(FLOWS[name](), 3, hidden_channels=8)
    x = torch.rand(16, 1, 8, 8)
    log_prob, logits = hybrid(x)
    assert log_prob.shape == (16,)
    assert logits.shape == (16, 3)
    labels = torch.arange(16) % 3
    (-log_prob.mean() + nn.functional.cross_entropy(logits, labels)).backward()
    missing = [name for name, parameter in hybrid.named_parameters() if parameter.grad is None]
    assert not missing


def test_density_and_logits_are_those_of_two_passes() -> None:
    hybrid = Hybrid(residual_flow(logdet=Exact()), 3, hidden_channels=8)
    x = torch.rand(16, 1, 8, 8)
    hybrid(x)
    log_prob, logits = hybrid(x)
    torch.testing.assert_close(log_prob, hybrid.flow.distribution().log_prob(x))
    torch.testing.assert_close(logits, hybrid.logits(x))
    with torch.no_grad():
        torch.testing.assert_close(logits, hybrid.logits(x))
        torch.testing.assert_close(log_prob, hybrid(x)[0])


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_any_batch_dimensions(batch: tuple[int, ...]) -> None:
    hybrid = Hybrid(residual_flow(), 3, hidden_channels=8)
    hybrid(torch.rand(16, 1, 8, 8))
    x = torch.rand(*batch, 1, 8, 8)
    log_prob, logits = hybrid(x)
    assert log_prob.shape == batch
    assert logits.shape == hybrid.logits(x).shape == (*batch, 3)
    assert hybrid.logits(torch.rand(0, 1, 8, 8)).shape == (0, 3)


def test_one_pass_serves_both_and_classification_alone_needs_no_log_det() -> None:
    logdet = CountingLogDet()
    hybrid = Hybrid(residual_flow(logdet=logdet), 3, hidden_channels=8)
    x = torch.rand(16, 1, 8, 8)
    hybrid(x)
    assert logdet.calls == 3
    hybrid.logits(x).sum().backward()
    assert logdet.calls == 3


def test_pyro_model_takes_one_pass_and_weighs_the_density() -> None:
    logdet = CountingLogDet()
    hybrid = Hybrid(residual_flow(logdet=logdet), 3, hidden_channels=8)
    x, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 3
    hybrid(x)

    def model(x: Tensor, labels: Tensor) -> None:
        pyro.module("hybrid", hybrid)
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=0.25):
                pyro.sample("x", hybrid.flow.distribution(), obs=x)
            pyro.sample("y", hybrid.class_distribution(x), obs=labels)

    pyro.clear_param_store()
    log_prob, logits = hybrid(x)
    expected = 0.25 * log_prob.sum() - nn.functional.cross_entropy(logits, labels, reduction="sum")
    logdet.calls = 0
    loss = Trace_ELBO().differentiable_loss(model, lambda *_: None, x, labels)
    assert logdet.calls == 3
    torch.testing.assert_close(-loss, expected)
    svi = SVI(model, lambda *_: None, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    first = [svi.step(x, labels) for _ in range(6)]
    assert first[-1] < first[0]


def test_model_draws_images_and_their_classes() -> None:
    hybrid = Hybrid(residual_flow(), 3, hidden_channels=8)
    hybrid(torch.rand(16, 1, 8, 8))
    with torch.no_grad(), pyro.plate("images", 4):
        x = pyro.sample("x", hybrid.flow.distribution())
        y = pyro.sample("y", hybrid.class_distribution(x))
    assert x.shape == (4, 1, 8, 8)
    assert y.shape == (4,)


def test_learns_both() -> None:
    hybrid = Hybrid(residual_flow(), 2, hidden_channels=8)
    labels = torch.randint(0, 2, (64,))
    x = 0.4 * torch.rand(64, 1, 8, 8) + 0.5 * labels.view(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(hybrid.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        log_prob, logits = hybrid(x)
        losses.append((log_prob.mean().item(), (logits.argmax(1) == labels).float().mean()))
        (-log_prob.mean() / 64 + nn.functional.cross_entropy(logits, labels)).backward()
        optimizer.step()
    assert losses[-1][0] > losses[0][0]
    assert losses[-1][1] > 0.95


def test_making_it_leaves_the_flow_as_it_is() -> None:
    flow = residual_flow()
    before = copy.deepcopy(flow.state_dict())
    generator = torch.get_rng_state()
    shapes = feature_shapes(flow)
    assert shapes == [(1, 8, 8), (4, 4, 4)]
    assert torch.equal(torch.get_rng_state(), generator)
    for name, tensor in flow.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_on_the_meta_device_and_in_double_precision() -> None:
    with torch.device("meta"):
        hybrid = Hybrid(residual_flow(), 3, hidden_channels=8)
        assert hybrid.logits(torch.rand(16, 1, 8, 8)).is_meta
    hybrid = Hybrid(residual_flow().double(), 3, hidden_channels=8).double()
    log_prob, logits = hybrid(torch.rand(16, 1, 8, 8, dtype=torch.float64))
    assert log_prob.dtype == logits.dtype == torch.float64


@pytest.mark.parametrize("end", [[ActNorm(16)], []])
def test_flow_that_learns_nothing_on_images_is_named(end: list[ActNorm]) -> None:
    flow = ImageFlow([Flatten((1, 4, 4)), *end], (1, 4, 4))
    with pytest.raises(ValueError, match="got none in ImageFlow"):
        Hybrid(flow, 3)


def test_a_hybrid_is_saved_whole(tmp_path: Path) -> None:
    flow = ResidualFlow((1, 4, 4), (1, 1), network=ConvBlock(4), alpha=None)
    hybrid = Hybrid(flow, 3, hidden_channels=4)
    images = torch.rand(16, 1, 4, 4)
    hybrid(images)
    checkpoints.save(hybrid, tmp_path / "hybrid.safetensors")
    loaded = checkpoints.load(tmp_path / "hybrid.safetensors")
    assert torch.equal(loaded.logits(images), hybrid.logits(images))
