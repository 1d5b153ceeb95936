from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp

from pyro_resflow.interop.numpyro import to_jax_map
from pyro_resflow.transforms import (
    AffineMap,
    BoundedLogScale,
    ElementwiseMap,
    LearnedLogScale,
    LogisticMixtureMap,
    SigmoidScale,
)

from .precision import precision, quick_compilation

MAPS = {
    "bounded": lambda: AffineMap(BoundedLogScale(2.0)),
    "learned": lambda: AffineMap(LearnedLogScale()),
    "sigmoid": lambda: AffineMap(SigmoidScale()),
    "sigmoid_below_2": lambda: AffineMap(SigmoidScale(0.0, factor=2.0)),
    "mixture": lambda: LogisticMixtureMap(3),
}


@pytest.mark.parametrize("name", MAPS)
def test_both_directions_are_torchs(name: str) -> None:
    with precision("float64"), quick_compilation():
        elementwise = MAPS[name]()
        for parameter in elementwise.parameters():
            torch.nn.init.constant_(parameter, 0.7)
        x = 3 * torch.randn(5, 4)
        parameters = torch.randn(5, elementwise.num_parameters, 4)
        y, log_slope = elementwise(x, parameters)
        theirs = to_jax_map(elementwise)
        arrays = [jnp.array(each.detach().numpy()) for each in (x, parameters, y)]
        forward = jax.jit(lambda x, p, y: (theirs.forward(x, p), theirs.inverse(y, p)))
        (their_y, their_slope), (back, slope_back) = forward(*arrays)
        np.testing.assert_allclose(their_y, y.detach(), atol=1e-12)
        np.testing.assert_allclose(their_slope, log_slope.detach(), atol=1e-12)
        np.testing.assert_allclose(back, x, atol=1e-10)
        np.testing.assert_allclose(slope_back, log_slope.detach(), atol=1e-10)


def test_a_component_that_is_very_wide_is_inverted() -> None:
    """Whose quantile would be beyond what the type holds."""
    mixture = LogisticMixtureMap(2)
    parameters = torch.zeros(1, 8, 1)
    parameters[:, -1] = 89
    y = mixture(torch.tensor([[0.5]]), parameters)[0]
    x = to_jax_map(mixture).inverse(jnp.array(y), jnp.array(parameters))[0]
    np.testing.assert_allclose(x, 0.5, atol=1e-5)


def test_what_is_not_found_is_nan() -> None:
    mixture = to_jax_map(LogisticMixtureMap(2))
    x = mixture.inverse(jnp.array([[1.0, jnp.nan]]), jnp.zeros((1, 8, 2)))[0]
    np.testing.assert_allclose(x[0, 0], 1.0, atol=1e-6)
    assert bool(jnp.isnan(x[0, 1]))


def test_unknown_maps_are_named() -> None:
    with pytest.raises(ValueError, match="got ElementwiseMap, which has no translation"):
        to_jax_map(ElementwiseMap())
