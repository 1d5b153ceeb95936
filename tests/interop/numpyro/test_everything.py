"""Every flow and every transform of the package has a translation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp

from pyro_resflow import flows
from pyro_resflow.flows.contexts import Vectors
from pyro_resflow.interop.numpyro import to_jax, to_numpyro
from pyro_resflow.nn import (
    ConvConditioner,
    GatedAttentionConditioner,
    GatedLipschitzMLP,
    ResidualConditioner,
    TransformerConditioner,
)
from pyro_resflow.transforms import (
    ConditionalAffine,
    CouplingStep,
    Flatten,
    InvertibleConv1x1,
    initialize,
)
from tests.transforms.conditional_registry import CONDITIONAL
from tests.transforms.registry import TRANSFORMS, Halved, SmallConditioner

from .precision import precision, quick_compilation

IMAGE = (1, 4, 4)


def untrained(flow: nn.Module) -> nn.Module:
    """An image flow in evaluation mode, initialised from noise."""
    initialize(flow, torch.rand(16, *flow.event_shape))
    return flow.eval()


TRANSFORMER = TransformerConditioner(channels=4, blocks=1, heads=2)
LABELS = {"num_classes": 3, "embedding_dim": 2}


def untrained_for_labels(flow: Any) -> nn.Module:
    """A conditional image flow in evaluation mode, initialised from noise."""
    initialize(flow, torch.rand(16, *flow.event_shape), torch.arange(16) % 3)
    return flow.eval()


FLOWS: dict[str, Callable[[], Any]] = {
    "ConditionalFlowPlusPlus": lambda: untrained_for_labels(
        flows.ConditionalFlowPlusPlus(
            IMAGE, ((0, 1),), step=CouplingStep(GatedAttentionConditioner(4, blocks=1)), **LABELS
        )
    ),
    "ConditionalGlow": lambda: untrained_for_labels(
        flows.ConditionalGlow(IMAGE, steps=(1,), network=ConvConditioner(2), **LABELS)
    ),
    "ConditionalImageFlow": lambda: flows.ConditionalImageFlow(
        [Flatten((2, 2, 2)), ConditionalAffine(8, 3)], (2, 2, 2), Vectors(3)
    ),
    "ConditionalJet": lambda: untrained_for_labels(
        flows.ConditionalJet(IMAGE, 2, patch_size=2, network=TRANSFORMER, **LABELS)
    ),
    "ConditionalRealNVP": lambda: untrained_for_labels(
        flows.ConditionalRealNVP(
            IMAGE, scales=1, network=ResidualConditioner(2, blocks=1), **LABELS
        )
    ),
    "ConditionalResidualFlow": lambda: untrained_for_labels(
        flows.ConditionalResidualFlow(
            IMAGE, (1,), network=flows.ConvBlock(2), end_blocks=0, **LABELS
        )
    ),
    "Encoder": lambda: flows.Encoder([InvertibleConv1x1(2), Flatten((2, 2, 2))], (2, 2, 2)),
    "ConditionedImageFlow": lambda: untrained_for_labels(
        flows.ConditionalResidualFlow(
            IMAGE, (1,), num_classes=3, network=flows.ConvBlock(2), end_blocks=0
        )
    ).condition(torch.tensor(1)),
    "FlowPlusPlus": lambda: untrained(
        flows.FlowPlusPlus(
            IMAGE, ((0, 1),), step=CouplingStep(GatedAttentionConditioner(4, blocks=1))
        )
    ),
    "Glow": lambda: untrained(flows.Glow(IMAGE, steps=(1,), network=ConvConditioner(2))),
    "IResNet": lambda: untrained(flows.IResNet(IMAGE, (1,), network=flows.ConvBlock(2))),
    "ImageFlow": lambda: flows.ImageFlow([InvertibleConv1x1(2), Flatten((2, 2, 2))], (2, 2, 2)),
    "Jet": lambda: untrained(flows.Jet(IMAGE, 2, patch_size=2, network=TRANSFORMER)),
    "RealNVP": lambda: untrained(
        flows.RealNVP(IMAGE, scales=1, network=ResidualConditioner(2, blocks=1))
    ),
    "ResidualFlow": lambda: untrained(
        flows.ResidualFlow(IMAGE, (1,), network=flows.ConvBlock(2), end_blocks=0)
    ),
    "conditional_residual_flow": lambda: flows.conditional_residual_flow(2, 3, 1, [4]),
    "residual_flow": lambda: flows.residual_flow(2, 1, [4], network=GatedLipschitzMLP),
}
NETWORKS: dict[str, Callable[[], Any]] = {
    "ConvBlock": lambda: flows.ConvBlock(2)(torch.Size(IMAGE), preactivation=True),
    "DenseNetBlock": lambda: flows.DenseNetBlock(1, 4)(torch.Size(IMAGE), preactivation=True),
    "MLPBlock": lambda: flows.MLPBlock([4])(torch.Size([3]), preactivation=True),
}
PROTOCOLS = {"NetworkRecipe"}


def test_the_tables_hold_every_public_name() -> None:
    assert FLOWS.keys() | NETWORKS.keys() | PROTOCOLS == set(flows.__all__)


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_has_a_translation(name: str) -> None:
    translated = to_numpyro(FLOWS[name]())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree_util.tree_leaves(translated))
    twin = jax.tree_util.tree_map(lambda leaf: leaf, translated)
    assert twin == translated
    assert hash(twin) == hash(translated)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_translation(name: str) -> None:
    assert callable(to_jax(NETWORKS[name]()))


class JaxHalved(NamedTuple):
    def __call__(self, x: jax.Array) -> jax.Array:
        return 0.5 * jnp.sin(0.5 * x)


class JaxConditioner(NamedTuple):
    first: Any
    last: Any

    def __call__(self, a: jax.Array, context: jax.Array | None = None) -> jax.Array:
        joined = a if context is None else jnp.concatenate([a, context], axis=-1)
        return self.last(jnp.tanh(self.first(joined)))


@pytest.fixture(scope="module", autouse=True)
def _networks_of_the_tests() -> None:
    to_jax.register(Halved, lambda module: JaxHalved())
    to_jax.register(
        SmallConditioner, lambda module: JaxConditioner(to_jax(module.first), to_jax(module.last))
    )


OTHERS = {
    "inverse_of_pyros": "AffineCoupling",
    "compose_with_pyros": "AffineCoupling",
    "dequantization": "ConditionedUniformDequantization",
    "variational_dequantization": "ConditionedVariationalDequantization",
    "conditional_compose": "ConditionalAffineAutoregressive",
}
"""Transforms of Pyro, and dequantizations: without a translation, and what the error names."""


def evaluating(name: str) -> nn.Module:
    transform = TRANSFORMS[name].build()
    return transform.eval() if isinstance(transform, nn.Module) else transform


BUILT: dict[str, Callable[[], Any]] = {
    **{name: partial(evaluating, name) for name in TRANSFORMS},
    **{name: partial(make, 3, 2) for name, make in CONDITIONAL.items()},
}


@pytest.mark.parametrize("name", BUILT)
def test_every_transform_has_a_translation_that_is_hashable(name: str) -> None:
    transform = BUILT[name]()
    if name in OTHERS:
        with pytest.raises(ValueError, match=f"got {OTHERS[name]}, which has no translation"):
            to_numpyro(transform)
        return
    translated = to_numpyro(transform)
    twin = jax.tree_util.tree_map(lambda leaf: leaf, translated)
    assert twin == translated
    assert hash(twin) == hash(translated)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in OTHERS])
def test_every_transform_is_the_same_in_jax(name: str) -> None:
    with precision("float64"), quick_compilation():
        case = TRANSFORMS[name]
        transform = evaluating(name)
        x = case.draw(*case.event_shape)
        y = transform(x)
        ladj = transform.log_abs_det_jacobian(x, y)

        @jax.jit
        def evaluate(t: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
            return t(x), t.log_abs_det_jacobian(x, t(x)), t.inv(y)

        arrays = [jnp.array(value.detach().numpy()) for value in (x, y)]
        found = evaluate(to_numpyro(transform), *arrays)
        for actual, expected in zip(found, (y, ladj, x), strict=True):
            np.testing.assert_allclose(actual, expected.detach().numpy(), atol=1e-9, rtol=1e-9)
