"""Couplings with a context, in JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp
import numpyro.distributions as numpyro_dist

from pyro_resflow.interop.numpyro import to_jax, to_numpyro
from pyro_resflow.nn import ConvConditioner
from pyro_resflow.transforms import (
    AffineMap,
    ChannelHalves,
    Checkerboard,
    Columns,
    ConditionalCompose,
    ConditionalCoupling,
    ConditionalInverse,
    CouplingStep,
    ElementwiseMap,
    LogisticMixtureMap,
    Mask,
    OnFullImage,
    initialize,
)
from tests.transforms.conditional_registry import conditional_coupling
from tests.transforms.registry import SmallConditioner

from .precision import precision, quick_compilation, tolerance
from .test_everything import JaxConditioner

MAPS: Sequence[Callable[[], ElementwiseMap]] = (AffineMap, lambda: LogisticMixtureMap(2))
MASKS: dict[str, Callable[[], Mask]] = {
    "channels": lambda: ChannelHalves((2, 2, 4)),
    "checkerboard": lambda: Checkerboard((1, 2, 4)),
    "columns": lambda: Columns((1, 2, 4), parity=1),
}


def image_coupling(mask: Mask, elementwise: ElementwiseMap) -> ConditionalCoupling:
    """A coupling of images with feature maps of the kept half's size, and random weights."""
    channels = elementwise.num_parameters * mask.changed_shape[0]
    net = ConvConditioner(2)(mask.kept_shape, channels, context_channels=3)
    return moved(ConditionalCoupling(mask, elementwise, net, (3, *mask.kept_shape[1:])))


def moved(module: Any) -> Any:
    """The module away from its start, its networks initialised from noise."""
    coupling = module.parts[-1] if isinstance(module, ConditionalCompose) else module
    x = torch.randn(16, *coupling.mask.event_shape)
    initialize(module, x, torch.randn(16, *coupling.context_shape))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def jax_array(x: Tensor) -> jax.Array:
    return jnp.array(x.detach().numpy())


def assert_same(flow: Any, x: Tensor, context: Tensor) -> None:
    """Value, log-determinant and inverse: conditioned in torch, in JAX, and one by one."""
    ours, tol = flow.condition(context), tolerance(x.dtype)
    y = ours(x)
    expected = [value.detach().numpy() for value in (y, ours.log_abs_det_jacobian(x, y), x)]

    @jax.jit
    def evaluate(t: Any, x: jax.Array, context: jax.Array) -> tuple[jax.Array, ...]:
        at = t.condition(context)
        y = at(x)
        return y, at.log_abs_det_jacobian(x, y), at.inv(y)

    t, arrays = to_numpyro(flow), (jax_array(x), jax_array(context))
    leaves, tree = jax.tree_util.tree_flatten(t)
    twin = jax.tree_util.tree_unflatten(tree, leaves)
    assert twin == t
    assert hash(twin) == hash(t)
    for found in (
        evaluate(t, *arrays),
        jax.vmap(evaluate, (None, 0, 0))(t, *arrays),
        (jax.jit(to_numpyro(ours))(arrays[0]),),
    ):
        for actual, value in zip(found, expected, strict=False):
            np.testing.assert_allclose(actual, value, atol=tol, rtol=tol)


CASES = [
    pytest.param(name, index, precision_name, marks=() if quick else pytest.mark.slow)
    for name in MASKS
    for index in range(len(MAPS))
    for precision_name in ("float32", "float64")
    for quick in [(name, index, precision_name) == ("checkerboard", 0, "float64")]
]


@pytest.mark.parametrize(("mask", "elementwise", "precision_name"), CASES)
def test_couplings_given_feature_maps(mask: str, elementwise: int, precision_name: str) -> None:
    with precision(precision_name), quick_compilation():
        flow = image_coupling(MASKS[mask](), MAPS[elementwise]())
        x = torch.randn(5, *flow.mask.event_shape)
        assert_same(flow, x, torch.randn(5, *flow.context_shape))


@pytest.fixture
def _small_conditioner() -> None:
    to_jax.register(
        SmallConditioner, lambda module: JaxConditioner(to_jax(module.first), to_jax(module.last))
    )


@pytest.mark.usefixtures("_small_conditioner")
def test_couplings_of_vectors_in_a_flow() -> None:
    with precision("float64"), quick_compilation():
        parts = [
            moved(conditional_coupling(ChannelHalves((3,), swap=swap), AffineMap(), (2,)))
            for swap in (False, True)
        ]
        flow = ConditionalInverse(ConditionalCompose(parts))
        assert_same(flow, torch.randn(5, 3), torch.randn(5, 2))


@pytest.mark.slow
def test_steps_and_full_images_given_feature_maps() -> None:
    with precision("float64"), quick_compilation():
        mask, context_shape = Checkerboard((1, 2, 4)), (3, 2, 4)
        net = ConvConditioner(2)(mask.event_shape, 2, context_channels=1 + 3)
        flow = ConditionalCoupling(mask, AffineMap(), OnFullImage(mask, net), context_shape)
        x, context = torch.randn(5, 1, 2, 4), torch.randn(5, *context_shape)
        assert_same(moved(flow), x, context)
        step = CouplingStep(ConvConditioner(2), AffineMap)
        flow = moved(step.conditional(ChannelHalves((2, 2, 4)), 3))
        assert_same(flow, torch.randn(5, 2, 2, 4), context)


@pytest.mark.usefixtures("_small_conditioner")
def test_contexts_broadcast() -> None:
    with quick_compilation():
        flow = conditional_coupling(ChannelHalves((3,)), AffineMap(), (2,))
        context, x = torch.randn(7, 2), torch.randn(6, 1, 3)
        t = to_numpyro(flow).condition(jax_array(context))
        base = numpyro_dist.Normal(jnp.zeros(3), 1.0).to_event(1)
        d = numpyro_dist.TransformedDistribution(base, t)
        assert d.batch_shape == (7,)
        assert jax.eval_shape(lambda: d.sample(jax.random.PRNGKey(0), (2,))).shape == (2, 7, 3)
        assert t.forward_shape((6, 1, 3)) == (6, 7, 3)
        y, log_prob = jax.jit(lambda x: (t(x), d.log_prob(x)))(jax_array(x))
        ours = flow.condition(context)
        np.testing.assert_allclose(y, ours(x).detach().numpy(), atol=1e-5)
        density = dist.TransformedDistribution(
            dist.Normal(torch.zeros(3), 1.0).to_event(1), [ours]
        )
        expected = density.log_prob(x).detach().numpy()
        np.testing.assert_allclose(log_prob, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_small_conditioner")
def test_a_context_of_another_shape_is_named() -> None:
    flow = to_numpyro(conditional_coupling(ChannelHalves((3,)), AffineMap(), (2,)))
    for shape in ((5,), (4, 3), ()):
        with pytest.raises(ValueError, match=r"context: expected the last dimensions \(2,\)"):
            flow.condition(jnp.zeros(shape))


def test_a_network_that_takes_no_context_is_named() -> None:
    mask = ChannelHalves((2, 2, 4))
    flow = ConditionalCoupling(mask, AffineMap(), nn.Conv2d(1, 2, 1), (3, 2, 4))
    with pytest.raises(ValueError, match="net: expected a network of the kept half and a context"):
        to_numpyro(flow)
