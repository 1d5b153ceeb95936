#!/usr/bin/env bash
# numpyro 0.22.0 with jax 0.12.0.1; needs Python 3.12
#
# Behaviour: where InverseAutoregressiveTransform clips a log-scale (below -5, above 3), its gradient
# ignores the clip. At kinks, jax has other derivatives than torch: clip 1/2 at its bound (torch: 0 for
# numbers), abs 1 at 0 (torch: 0), hard_tanh 1 at 1 (torch: 0).
# One would have guessed: gradients agree with finite differences; a model that is translated from
# torch to jax has the same gradients.
# Output seen:
#   InverseAutoregressiveTransform, clipped: largest gradient of the log-determinant 5.3e+03, by
#     differences 0
#   derivatives at kinks: clip 0.5, abs 1.0, hard_tanh 1.0, relu 0.0, relu6 0.0
source "$(dirname "$0")/venv.sh"
PYTHON=${PYTHON:-python3.12}
install 'numpyro==0.22.0' 'jax==0.12.0.1'
run <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.nn import AutoregressiveNN

jax.config.update("jax_enable_x64", True)
x = jnp.array(np.random.default_rng(0).normal(size=5))
initialize, network = AutoregressiveNN(5, [16, 16])
_, parameters = initialize(jax.random.PRNGKey(0), (5,))
large = jax.tree.map(lambda leaf: 30 * leaf, parameters)
transform = InverseAutoregressiveTransform(lambda v, **options: network(large, v, **options))


def logdet(x):
    return jnp.sum(transform.log_abs_det_jacobian(x, transform(x)))


gradient = jnp.abs(jax.grad(logdet)(x)).max()
steps = 1e-6 * jnp.eye(5)
differences = jnp.array([abs(logdet(x + step) - logdet(x - step)) / 2e-6 for step in steps]).max()
print(
    f"InverseAutoregressiveTransform, clipped: largest gradient of the log-determinant "
    f"{gradient:.1e}, by differences {differences:.3g}"
)

kinks = {
    "clip": jax.grad(lambda x: jnp.clip(x, 0.0, 1.0))(1.0),
    "abs": jax.grad(jnp.abs)(0.0),
    "hard_tanh": jax.grad(jax.nn.hard_tanh)(1.0),
    "relu": jax.grad(jax.nn.relu)(0.0),
    "relu6": jax.grad(jax.nn.relu6)(6.0),
}
print(f"derivatives at kinks: {', '.join(f'{name} {value}' for name, value in kinks.items())}")
values = [float(value) for value in kinks.values()]
sys.exit(not gradient > 1000 > 1 > differences or values != [0.5, 1.0, 1.0, 0.0, 0.0])
PYTHON
