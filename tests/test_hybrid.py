"""Hybrid models: one pass for density and classes, in PyTorch and in Pyro, for any image flow."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_resflow.flows import ConvBlock, ImageFlow, IResNet, ResidualFlow
from pyro_resflow.hybrid import Hybrid, feature_shapes
from pyro_resflow.logdet import Exact
from pyro_resflow.transforms import ActNorm, Flatten, Logit, OnePassTransform, Split, Squeeze


class CountingLogDet:
    """An estimator that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, net: nn.Module, x: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return Exact()(net, x, event_dim)


class ChannelCoupling(OnePassTransform):
    """An affine coupling of image channels: the flows of this kind are built of such."""

    domain = codomain = dist.constraints.independent(dist.constraints.real, 3)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.net = nn.Conv2d(self.half, 2 * (channels - self.half), 3, padding=1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.tensor_split([self.half], dim=-3)
        log_scale, shift = self.net(a).tanh().chunk(2, dim=-3)
        y = torch.cat([a, b * log_scale.exp() + shift], dim=-3)
        return y, log_scale.sum((-3, -2, -1))


def residual_flow(**options: object) -> ResidualFlow:
    options = {"network": ConvBlock(4), "end_blocks": 1, "alpha": None, **options}
    return ResidualFlow((1, 8, 8), (1, 1), **options)


def coupling_flow() -> ImageFlow:
    last = [ActNorm(2, event_dim=3), ChannelCoupling(2), Flatten((2, 4, 4))]
    inner = ImageFlow(last, (2, 4, 4)).encoder
    parts = [Logit(0.05, event_dim=3), Squeeze(), ChannelCoupling(4), Split(inner, (4, 4, 4))]
    return ImageFlow(parts, (1, 8, 8))


FLOWS = {
    "residual": residual_flow,
    "factored_out": lambda: residual_flow(squeeze_first=True, factor_out=True),
    "i_resnet": lambda: IResNet((1, 8, 8), (1, 1), network=ConvBlock(4)),
    "coupling": coupling_flow,
}


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_density_is_the_flows_and_every_parameter_learns(name: str) -> None:
    hybrid = Hybrid(FLOWS[name](), 3, hidden_channels=8)
    x = torch.rand(5, 1, 8, 8)
    log_prob, logits = hybrid(x)
    assert log_prob.shape == (5,)
    assert logits.shape == (5, 3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    (-log_prob.mean() + nn.functional.cross_entropy(logits, labels)).backward()
    missing = [name for name, parameter in hybrid.named_parameters() if parameter.grad is None]
    assert not missing


def test_density_and_logits_are_those_of_two_passes() -> None:
    hybrid = Hybrid(residual_flow(logdet=Exact()), 3, hidden_channels=8)
    x = torch.rand(5, 1, 8, 8)
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
    hybrid(torch.rand(5, 1, 8, 8))
    x = torch.rand(*batch, 1, 8, 8)
    log_prob, logits = hybrid(x)
    assert log_prob.shape == batch
    assert logits.shape == hybrid.logits(x).shape == (*batch, 3)
    assert hybrid.logits(torch.rand(0, 1, 8, 8)).shape == (0, 3)


def test_one_pass_serves_both_and_classification_alone_needs_no_log_det() -> None:
    logdet = CountingLogDet()
    hybrid = Hybrid(residual_flow(logdet=logdet), 3, hidden_channels=8)
    x = torch.rand(5, 1, 8, 8)
    hybrid(x)
    assert logdet.calls == 3
    with torch.no_grad():
        hybrid.logits(x)
    assert logdet.calls == 3


def test_pyro_model_takes_one_pass_and_weighs_the_density() -> None:
    logdet = CountingLogDet()
    hybrid = Hybrid(residual_flow(logdet=logdet), 3, hidden_channels=8)
    x, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    hybrid(x)

    def model(x: Tensor, labels: Tensor) -> None:
        pyro.module("hybrid", hybrid)
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=0.25):
                pyro.sample("x", hybrid.flow.distribution(), obs=x)
            pyro.sample("y", dist.Categorical(logits=hybrid.logits(x)), obs=labels)

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
        assert hybrid.logits(torch.rand(5, 1, 8, 8)).is_meta
    hybrid = Hybrid(residual_flow().double(), 3, hidden_channels=8).double()
    log_prob, logits = hybrid(torch.rand(5, 1, 8, 8, dtype=torch.float64))
    assert log_prob.dtype == logits.dtype == torch.float64


def test_flow_that_learns_nothing_on_images_is_named() -> None:
    flow = ImageFlow([Flatten((1, 4, 4)), ActNorm(16)], (1, 4, 4))
    with pytest.raises(ValueError, match="nothing to classify by"):
        Hybrid(flow, 3)
