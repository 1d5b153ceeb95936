"""Every transform, module and model computes the same after loading."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormalizingFlow
from torch import nn

from pyro_resflow import conditional_residual_flow, residual_flow
from pyro_resflow.checkpoints import load, save
from pyro_resflow.classifiers import IResNetClassifier
from pyro_resflow.flows import ConvBlock, DenseNetBlock, ResidualFlow
from pyro_resflow.guides import AmortizedResidualFlow, AutoResidualFlow
from pyro_resflow.hybrid import Hybrid
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    ELU,
    Chain,
    CLipSwish,
    Concatenated,
    InducedNorm,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLinear,
    LipschitzMLP,
    SpectralNorm,
    Tanh,
)
from pyro_resflow.transforms import ConditionalCompose, UniformDequantization, set_logdet
from tests.checkpoints.roundtrips import again, check_same_state
from tests.transforms.conditional_registry import CONDITIONAL
from tests.transforms.registry import TRANSFORMS, Halved, SmallConditioner


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_every_transform_computes_the_same(name: str, dtype: torch.dtype, path: Path) -> None:
    case = TRANSFORMS[name]
    torch.set_default_dtype(dtype)
    try:
        transform = case.build()
        x = case.draw(4, *case.event_shape)
        save(transform, path)
    finally:
        torch.set_default_dtype(torch.float32)
    loaded = load(path, classes=[Halved, SmallConditioner])
    assert type(loaded) is type(transform)
    check_same_state(loaded, transform)
    with torch.no_grad():
        y, ladj = transform.call_and_ladj(x)
        again_y, again_ladj = loaded.call_and_ladj(x)
        assert torch.equal(again_y, y)
        assert torch.equal(again_ladj, ladj)
        assert torch.equal(loaded._inverse(y), transform._inverse(y))


@pytest.mark.parametrize("name", sorted(CONDITIONAL))
def test_every_conditional_transform_computes_the_same(name: str, path: Path) -> None:
    transform = CONDITIONAL[name](3, 2)
    loaded = again(transform, path, classes=[SmallConditioner])
    assert type(loaded) is type(transform)
    check_same_state(loaded, transform)
    x, context = torch.randn(4, 3), torch.randn(4, 2)
    with torch.no_grad():
        one, other = transform.condition(context), loaded.condition(context)
        assert torch.equal(one._call(x), other._call(x))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: LipschitzMLP(3, (8,), activation=Tanh, preactivation=True),
    "mlp_of_positional_arguments": lambda: LipschitzMLP(3, [8, 8]),
    "norm_for_each_layer": lambda: LipschitzMLP(
        3, [8], norm=[SpectralNorm(0.9), SpectralNorm(0.8, tolerance=None, max_iterations=3)]
    ),
    "induced_norms": lambda: LipschitzMLP(3, [8], norm=InducedNorm.chain(2, 1.5)),
    "conv_net": lambda: LipschitzConvNet((2, 4, 4), [4], kernel_sizes=[3, 1], activation=ELU),
    "dense_net": lambda: LipschitzDenseNet(3, depth=2, growth=4),
    "partial": lambda: LipschitzMLP(3, [8], activation=partial(Concatenated, Tanh(), bound=1.5)),
    "chain": lambda: Chain(
        [LipschitzLinear(3, 4, bias=False), CLipSwish(), LipschitzLinear(8, 3)]
    ),
    "dequantization": lambda: UniformDequantization(8),
    "densenet_flow": lambda: ResidualFlow(
        (1, 4, 4), [1], network=DenseNetBlock(2, 4, partial(CLipSwish)), end_blocks=0
    ),
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_other_modules(name: str, path: Path) -> None:
    module = MODULES[name]()
    loaded = again(module, path)
    assert str(loaded) == str(module)
    check_same_state(loaded, module)
    if isinstance(module, Chain):
        shape = getattr(module, "event_shape", (3,))
        x = torch.randn(4, *shape)
        assert torch.equal(loaded(x), module(x))


def test_models_around_a_flow(path: Path) -> None:
    posterior = AmortizedResidualFlow(2, 3, blocks=2, hidden_dims=[8])
    loaded = again(posterior, path)
    check_same_state(loaded, posterior)
    context, z = torch.randn(4, 3), torch.randn(4, 2)
    set_logdet(posterior, Exact())
    set_logdet(loaded, Exact())
    with torch.no_grad():
        expected = posterior.condition(context).log_prob(z)
        assert torch.equal(loaded.condition(context).log_prob(z), expected)
    flow = ResidualFlow((1, 4, 4), [1], network=ConvBlock(4), end_blocks=0, alpha=None)
    images = torch.rand(16, 1, 4, 4)
    for model in (
        Hybrid(flow, 3, hidden_channels=4),
        IResNetClassifier((1, 4, 4), 3, blocks=[1], hidden_channels=[4], padding=1),
    ):
        model(images)  # which sets the ActNorms
        model.eval()
        loaded = again(model, path)
        check_same_state(loaded, model)
        assert not loaded.training


def test_the_flows_of_guides(path: Path) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    for guide in (
        AutoResidualFlow(model, blocks=2, hidden_dims=[8]),
        AutoNormalizingFlow(model, partial(residual_flow, blocks=2, hidden_dims=[8])),
    ):
        pyro.clear_param_store()
        guide()
        x = torch.randn(4, 3)
        with torch.no_grad():
            assert torch.equal(again(guide.transform, path)(x), guide.transform(x))


def test_copies_and_pickles_can_be_saved(path: Path) -> None:
    flow = residual_flow(2, 2, [8], norm=InducedNorm.chain(2))
    x = torch.randn(4, 2)
    for other in (copy.deepcopy(flow), copy.copy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(again(other, path)(x), flow(x))
    twice = again(again(flow, path), path)
    assert torch.equal(twice(x), flow(x))


def test_a_converted_copy_can_be_saved(path: Path) -> None:
    flow = copy.deepcopy(residual_flow(2, 2, [8], norm=InducedNorm.chain(2))).double()
    check_same_state(again(flow, path), flow)


def test_the_inverse_of_a_saved_flow(path: Path) -> None:
    flow = conditional_residual_flow(2, 3, 1, [8], logdet=Exact())
    loaded = again(flow.inv, path)
    x, context = torch.randn(4, 2), torch.randn(4, 3)
    assert torch.equal(loaded.condition(context)(x), flow.inv.condition(context)(x))
    assert isinstance(loaded.inv, ConditionalCompose)
