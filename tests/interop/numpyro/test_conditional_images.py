"""Image flows that depend on a label or a vector, in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from pyro_resflow.flows import (
    ConditionalFlowPlusPlus,
    ConditionalGlow,
    ConditionalImageFlow,
    ConditionalJet,
    ConditionalRealNVP,
    ConditionalResidualFlow,
    ConvBlock,
    DenseNetBlock,
    MLPBlock,
)
from pyro_resflow.interop.numpyro import Krylov, to_numpyro, with_logdet
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    ConvConditioner,
    GatedAttentionConditioner,
    ResidualConditioner,
    TransformerConditioner,
)
from pyro_resflow.solvers import Anderson
from pyro_resflow.transforms import CouplingStep, initialize

from .precision import precision, quick_compilation, tolerance

EVENT, CLASSES = (1, 4, 4), 3
LABELS = {"num_classes": CLASSES, "embedding_dim": 2}
SOLVES = {"logdet": Exact(), "solver": Anderson(tolerance=1e-13)}
FLOWS: dict[str, Callable[..., ConditionalImageFlow]] = {
    "glow": lambda **given: ConditionalGlow(EVENT, (1, 1), network=ConvConditioner(2), **given),
    "jet": lambda **given: ConditionalJet(
        EVENT,
        2,
        patch_size=2,
        network=TransformerConditioner(channels=4, blocks=1, heads=2),
        **given,
    ),
    "real_nvp": lambda **given: ConditionalRealNVP(
        EVENT, scales=2, network=ResidualConditioner(2, blocks=1), **given
    ),
    "flow_plus_plus": lambda **given: ConditionalFlowPlusPlus(
        EVENT,
        ((0, 1), (1, 0)),
        step=CouplingStep(GatedAttentionConditioner(channels=4, blocks=1)),
        **given,
    ),
    "residual_flow": lambda **given: ConditionalResidualFlow(
        EVENT,
        (1, 1),
        network=ConvBlock(2),
        factor_out=True,
        end_blocks=1,
        end_network=MLPBlock((4,)),
        **given,
        **SOLVES,
    ),
    "dense_nets": lambda **given: ConditionalResidualFlow(
        EVENT, (1,), network=DenseNetBlock(1, 4), end_blocks=0, **given, **SOLVES
    ),
}


def contexts(flow: ConditionalImageFlow, number: int) -> torch.Tensor:
    """Labels for a flow of labels, else vectors."""
    if flow.num_classes is not None:
        return torch.arange(number) % CLASSES
    return torch.randn(number, 2)


def trained(name: str, **given: Any) -> ConditionalImageFlow:
    """A flow away from its start."""
    flow = FLOWS[name](**given)
    initialize(flow, torch.rand(16, *EVENT), contexts(flow, 16))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.eval()


def jax_array(x: torch.Tensor) -> jax.Array:
    return jnp.array(x.detach().numpy())


def density(t: Any) -> dist.TransformedDistribution:
    return dist.TransformedDistribution(dist.Normal(jnp.zeros(16), 1.0).to_event(1), t)


@pytest.mark.parametrize(
    ("name", "given", "precision_name"),
    [
        ("glow", LABELS, "float64"),
        *(
            pytest.param(name, given, precision_name, marks=pytest.mark.slow)
            for name in FLOWS
            for given in (LABELS, {"context_dim": 2})
            for precision_name in ("float32", "float64")
        ),
    ],
)
def test_flows_score_and_sample_as_in_torch(
    name: str, given: dict[str, int], precision_name: str
) -> None:
    with precision(precision_name) as dtype, quick_compilation():
        flow, tol = trained(name, **given), tolerance(dtype)
        context = contexts(flow, 2)
        x, z = torch.rand(3, 1, *EVENT), torch.randn(2, flow.latent_dim)
        ours = flow.condition(context)

        @jax.jit
        def score(t: Any, x: jax.Array, z: jax.Array, context: jax.Array) -> tuple[Any, ...]:
            at = t.condition(context)
            return density(at).log_prob(x), at(z)

        t, arrays = to_numpyro(flow), (jax_array(x), jax_array(z), jax_array(context))
        expected = ours.distribution().log_prob(x), ours(z)
        for found, value in zip(score(t, *arrays), expected, strict=True):
            np.testing.assert_allclose(found, value.detach().numpy(), atol=tol, rtol=tol)
        assert density(t.condition(arrays[2])).batch_shape == (2,)
        assert density(to_numpyro(ours)).event_shape == EVENT
        twin = jax.tree_util.tree_map(lambda leaf: leaf, t)
        assert twin == t
        assert hash(twin) == hash(t)


def test_labels_are_checked() -> None:
    t = to_numpyro(trained("glow", **LABELS))
    with pytest.raises(
        ValueError, match=r"context: expected integer labels 0 \.\. 2, got float32"
    ):
        t.condition(jnp.zeros(3))
    embedded = t.transform._replace(transform=Recorded())
    vectors = embedded.condition(jnp.array([-1, 0, 2, 3]))
    assert jnp.isnan(vectors).any(-1).tolist() == [True, False, False, True]
    np.testing.assert_array_equal(vectors[1:3], embedded.embedding[jnp.array([0, 2])])


class Recorded:
    """A conditional transform that returns its context."""

    def condition(self, context: jax.Array) -> jax.Array:
        return context


@pytest.mark.slow
def test_estimates_of_conditional_blocks_are_close() -> None:
    with precision("float64"), quick_compilation():
        flow = trained("residual_flow", **LABELS)
        x, context = jax_array(torch.rand(2, *EVENT)), jnp.array([0, 2])
        exact = to_numpyro(flow)
        estimated = with_logdet(exact, Krylov(jax.random.PRNGKey(0), products=16, probes=50))
        values = [density(t.condition(context)).log_prob(x) for t in (exact, estimated)]
        assert (values[0] != values[1]).all()
        np.testing.assert_allclose(*values, atol=0.5)
