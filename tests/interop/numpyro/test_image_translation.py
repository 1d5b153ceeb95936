from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp
import jax.test_util

from pyro_resflow.flows import (
    ConvBlock,
    DenseNetBlock,
    FlowPlusPlus,
    Glow,
    ImageFlow,
    IResNet,
    Jet,
    MLPBlock,
    RealNVP,
    ResidualFlow,
)
from pyro_resflow.interop.numpyro import to_numpyro
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    ELU,
    ConvConditioner,
    CPila,
    GatedAttentionConditioner,
    GatedMaxout,
    GatedSelfAttention,
    ResidualConditioner,
    TransformerConditioner,
    WeightNormConv2d,
)
from pyro_resflow.solvers import Anderson
from pyro_resflow.transforms import (
    ActNorm,
    AffineMap,
    BatchNorm,
    ChannelHalves,
    Columns,
    Coupling,
    CouplingStep,
    LogisticMixtureMap,
    Logit,
    MarginalGaussianization,
    Monotone,
    Residual,
    Squeeze,
    initialize,
)

from .precision import precision, quick_compilation, tolerance

EVENT = (1, 4, 4)
SOLVES = {"logdet": Exact(), "solver": Anderson(tolerance=1e-13)}
END = {"end_blocks": 1, "end_network": MLPBlock((4,))}


def step(**options: Any) -> CouplingStep:
    """A step of Flow++ with little in it."""
    conditioner = GatedAttentionConditioner(channels=4, blocks=1, **options)
    return CouplingStep(conditioner, partial(LogisticMixtureMap, 2))


MAXOUT = {"mixing": GatedMaxout(), "convolution": WeightNormConv2d, "last_activation": True}

FLOWS: dict[str, Callable[..., ImageFlow]] = {
    "residual_flow": lambda **solves: ResidualFlow(
        EVENT, (1, 1), network=ConvBlock(2), factor_out=True, **END, **solves
    ),
    "i_dense_net": lambda **solves: ResidualFlow(
        EVENT,
        (1,),
        network=DenseNetBlock(1, 4),
        end_blocks=1,
        end_network=DenseNetBlock(1, 4, stem=3),
        **solves,
    ),
    "monotone": lambda **solves: ResidualFlow(
        EVENT,
        (1,),
        network=DenseNetBlock(1, 4, activation=CPila),
        end_blocks=0,
        block=Monotone,
        **solves,
    ),
    "i_res_net": lambda **solves: IResNet(
        EVENT, (1, 1), network=ConvBlock(2, activation=ELU, coefficient=0.9), **solves
    ),
    "real_nvp": lambda **_: RealNVP(EVENT, scales=2, network=ResidualConditioner(2, blocks=1)),
    "glow": lambda **_: Glow(EVENT, steps=(1, 1), network=ConvConditioner(2)),
    "jet": lambda **_: Jet(
        (1, 4, 6),
        3,
        patch_size=2,
        network=TransformerConditioner(4, blocks=1, heads=2),
        channel_couplings=1,
    ),
    "flow_plus_plus": lambda **_: FlowPlusPlus(
        EVENT, ((0, 1), (1, 0)), step=step(mixing=GatedSelfAttention(heads=2))
    ),
    "flow_plus_plus_odd_width": lambda **_: FlowPlusPlus(
        (2, 2, 3), ((0, 1),), step=step(**MAXOUT)
    ),
    "flow_plus_plus_affine": lambda **_: FlowPlusPlus(
        EVENT,
        ((0, 2),),
        mask=Columns,
        step=CouplingStep(
            GatedAttentionConditioner(channels=4, blocks=1, mixing=None),
            AffineMap,
            mix_channels=False,
        ),
    ),
}


def trained(name: str) -> ImageFlow:
    """A flow away from its start."""
    flow = FLOWS[name](
        **(SOLVES if torch.get_default_dtype() == torch.float64 else {"logdet": Exact()})
    )
    initialize(flow, torch.rand(16, *flow.event_shape))
    flow.eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def jax_array(x: torch.Tensor) -> jax.Array:
    return jnp.array(x.detach().numpy())


QUICK = ["glow"]
"""What compiles within seconds."""

CASES = [
    pytest.param(name, precision_name, marks=() if quick else pytest.mark.slow)
    for name in FLOWS
    for precision_name in ("float32", "float64")
    for quick in [name in QUICK and precision_name == "float64"]
]


@pytest.mark.parametrize(("name", "precision_name"), CASES)
def test_flows_score_and_sample_as_in_torch(name: str, precision_name: str) -> None:
    with precision(precision_name) as dtype, quick_compilation():
        flow = trained(name)
        x, z = torch.rand(3, 2, *flow.event_shape), torch.randn(2, flow.latent_dim)
        theirs = to_numpyro(flow.distribution())
        t = theirs.transforms[0]
        score = jax.jit(lambda d, x, z: (d.log_prob(x), d.transforms[0](z)))
        log_prob, images = score(theirs, jax_array(x), jax_array(z))
        assert theirs.event_shape == flow.event_shape
        tol = tolerance(dtype)
        expected = flow.distribution().log_prob(x).detach().numpy()
        np.testing.assert_allclose(log_prob, expected, atol=tol, rtol=tol)
        np.testing.assert_allclose(images, flow(z).detach().numpy(), atol=tol, rtol=tol)
        leaves, tree = jax.tree_util.tree_flatten(t)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        twin = jax.tree_util.tree_unflatten(tree, leaves)
        assert twin == t
        assert hash(twin) == hash(t)


def test_vectors_are_coupled_and_normalized() -> None:
    with precision("float64"):
        net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2 * 1))
        coupling = Coupling(ChannelHalves((3,)), AffineMap(), net)
        norm = BatchNorm(3)
        initialize(norm.inv, 2 + 3 * torch.randn(20, 3))
        x = torch.randn(5, 3)
        for transform in (coupling, norm.eval()):
            t = to_numpyro(transform)
            y, ladj = transform.call_and_ladj(x)
            np.testing.assert_allclose(t(jax_array(x)), y.detach().numpy(), atol=1e-12)
            np.testing.assert_allclose(t.inv(t(jax_array(x))), x.numpy(), atol=1e-12)
            np.testing.assert_allclose(
                t.log_abs_det_jacobian(jax_array(x), t(jax_array(x))),
                ladj.detach().numpy(),
                atol=1e-12,
            )


@pytest.mark.parametrize(
    "features", [2, *(pytest.param(each, marks=pytest.mark.slow) for each in (None, (2, 3, 4)))]
)
def test_marginals_are_gaussianized(features: Any) -> None:
    gaussianize = MarginalGaussianization(5, features)
    gaussianize.fit(torch.rand(50, 2, 3, 4) ** 2)
    x = 1.1 * torch.rand(7, 2, 3, 4) - 0.05  # beyond both ends, too
    with precision("float64"), quick_compilation():
        gaussianize, x = gaussianize.double(), x.double()
        t = to_numpyro(gaussianize)
        y, ladj = gaussianize.call_and_ladj(x)

        @jax.jit
        def passes(x: jax.Array, y: jax.Array) -> tuple[Any, ...]:
            slopes = jax.grad(lambda x: t(x).sum())(x)
            return t.forward(x), t.backward(y), jnp.log(slopes).sum((1, 2, 3))

        (their_y, their_ladj), back, by_slopes = passes(jax_array(x), jax_array(y))
        np.testing.assert_allclose(their_y, y.numpy(), atol=1e-11)
        np.testing.assert_allclose(back[0], x.numpy(), atol=1e-11)
        for found in (their_ladj, back[1], by_slopes):
            np.testing.assert_allclose(found, ladj.numpy(), atol=1e-10)


def test_gradients_reach_images_and_weights() -> None:
    """Of a mixture coupling, whose inverse is a root, against central differences."""
    with precision("float64"), quick_compilation():
        mixture = LogisticMixtureMap(2)
        net = nn.Conv2d(1, mixture.num_parameters, 1)
        coupling = to_numpyro(Coupling(ChannelHalves((2, 1, 2)), mixture, net))
        y = jax_array(torch.randn(2, 2, 1, 2))

        @jax.jit
        def loss(coupling: Any, y: jax.Array) -> jax.Array:
            x, ladj = coupling.backward(y)
            return (x**2).sum() + ladj.sum()

        jax.test_util.check_grads(
            loss, (coupling, y), order=1, modes=["rev"], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trained("real_nvp").train(), "BatchNorm2d in training mode"),
        (lambda: BatchNorm(2), "BatchNorm is not initialised"),
        (lambda: MarginalGaussianization(4), "MarginalGaussianization is not initialised"),
        (lambda: Glow(EVENT, steps=(1,), network=ConvConditioner(2)), "is not initialised"),
        (
            lambda: Residual(nn.Conv2d(1, 1, 3, padding=1), event_dim=3),
            "event_shape = \\(C, H, W\\)",
        ),
        (
            lambda: Coupling(
                ChannelHalves((2, 4, 4)),
                AffineMap(),
                nn.Conv2d(1, 2, 3, padding=1, groups=1, stride=2),
            ),
            "a convolution with an odd kernel, unit stride",
        ),
        (
            lambda: Coupling(
                ChannelHalves((2, 4, 4)),
                AffineMap(),
                nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.5)),
            ),
            "Dropout in training mode",
        ),
    ],
)
def test_what_cannot_be_translated_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_numpyro(make())


def test_shapes_are_those_of_torch() -> None:
    for transform, shape in (
        (Squeeze(), (5, 1, 4, 4)),
        (Logit(0.05, event_dim=3), (5, 1, 4, 4)),
        (ActNorm(1, event_dim=3, initialized=True), (5, 1, 4, 4)),
    ):
        t = to_numpyro(transform)
        assert tuple(t.forward_shape(shape)) == tuple(transform.forward_shape(torch.Size(shape)))
        x = torch.rand(shape)
        y = transform(x)
        np.testing.assert_allclose(t(jax_array(x)), y.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(t.inv(jax_array(y)), x.numpy(), atol=1e-5)
