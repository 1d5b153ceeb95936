#!/usr/bin/env bash
# torchflows 1.2.1 with torch 2.14.1
#
# Behaviour: five layers return a log-determinant that is not that of their map, in train() and in
# eval(). ResFlowBlock divides every term of its series by its order a second time, and starts the
# series one power late. The 1x1 convolution of the Glow architectures counts a single pixel.
# ProximalResFlowBlock and the sigmoid transformers use a wrong formula. SpectralMatrix divides by the
# norm, but does not multiply by its coefficient.
# One would have guessed: log-determinants agree with an autograd Jacobian; norms of .7 for c=.7.
# Output seen:
#   ResFlowBlock, x / 2 in 10 dimensions: 2.97 +- 0.01, the Jacobian's 4.05
#   AffineGlow, 8x8: 22.59, the Jacobian's 30.96
#   ProximalResFlowBlock: 2.00, the Jacobian's -1.80
#   Sigmoid: -26.02, the Jacobian's 0.00
#   DenseSigmoid: -5671.52, the Jacobian's 0.01
#   SpectralMatrix, median norm of 200: 1.02 for c=0.7, 1.02 for c=0.1
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'torchflows==1.2.1' numpy
run <<'PYTHON'
import sys

import torch
from torchflows.bijections.finite.autoregressive.transformers.combination.sigmoid import (
    DenseSigmoid,
    Sigmoid,
)
from torchflows.bijections.finite.multiscale.architectures import AffineGlow
from torchflows.bijections.finite.residual.iterative import ResFlowBlock, SpectralMatrix
from torchflows.bijections.finite.residual.proximal import ProximalResFlowBlock


def both(layer, x, *context):
    """The returned log-determinant for one sample, and that of the Jacobian."""
    value = layer(x, *context)[1].item()
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, *context)[0], x)
    return value, torch.linalg.slogdet(jacobian.reshape(x.numel(), -1))[1].item()


torch.manual_seed(0)
half = torch.nn.Linear(10, 10, bias=False)
half.weight.data = torch.eye(10) / 2
found = []
for training in (True, False):
    block = ResFlowBlock((10,), g=half).train(training)
    draws = torch.cat([block(torch.zeros(50, 10))[1].detach() for _ in range(2000)])
    found.append((draws.mean(), draws.view(2000, 50).mean(1).std() / 2000**0.5))
(mean, error), _ = found
print(f"ResFlowBlock, x / 2 in 10 dimensions: {mean:.2f} +- {error:.2f}, the Jacobian's 4.05")
wrong = [abs(mean - 4.055) > 10 * error for mean, error in found]

cases = {
    "AffineGlow, 8x8": (AffineGlow((1, 8, 8), n_layers=2).eval(), (torch.randn(1, 1, 8, 8),)),
    "ProximalResFlowBlock": (ProximalResFlowBlock((6,)).eval(), (torch.randn(1, 6),)),
}
for kind in (Sigmoid, DenseSigmoid):
    layer = kind((3,))
    parameters = torch.randn(1, 3, *layer.parameter_shape_per_element)
    cases[kind.__name__] = (layer.forward, (torch.randn(1, 3), parameters))
for name, (layer, arguments) in cases.items():
    value, true = both(layer, *arguments)
    print(f"{name}: {value:.2f}, the Jacobian's {true:.2f}")
    wrong.append(abs(value - true) > 1)

norms = []
for c in (0.7, 0.1):
    matrices = torch.stack([SpectralMatrix((16, 16), c=c).normalized() for _ in range(200)])
    norms.append(torch.linalg.matrix_norm(matrices.detach(), 2).median().item())
print(f"SpectralMatrix, median norm of 200: {norms[0]:.2f} for c=0.7, {norms[1]:.2f} for c=0.1")
wrong += [norm >= 1 for norm in norms]
sys.exit(not all(wrong))
PYTHON
