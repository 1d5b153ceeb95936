#!/usr/bin/env bash
# FrEIA 0.2 with torch 2.14.1
#
# Behaviour: the log-determinant of IResNetLayer has no autograd graph. A loss of density plus
# log-determinant therefore trains the density alone, without an error or a warning.
# One would have guessed: a log-determinant with a gradient, as in the package's other layers.
# Output seen:
#   IResNetLayer: output has a graph True, log-determinant False
#   GLOWCouplingBlock: output has a graph True, log-determinant True
#   gradient of |z|^2 / 2 - log-determinant equals that of |z|^2 / 2: True
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'FrEIA==0.2' numpy
run <<'PYTHON'
import sys

import FrEIA.modules as modules
import torch

torch.manual_seed(0)


def network(inputs, outputs):
    return torch.nn.Linear(inputs, outputs)


layers = [
    modules.IResNetLayer([(6,)]),
    modules.GLOWCouplingBlock([(6,)], subnet_constructor=network),
]
graphs = []
for layer in layers:
    (z,), logdet = layer([torch.randn(5, 6)])
    graphs.append((z.requires_grad, logdet.requires_grad))
    print(
        f"{type(layer).__name__}: output has a graph {z.requires_grad}, "
        f"log-determinant {logdet.requires_grad}"
    )

layer, x = layers[0], torch.randn(5, 6)
weight = layer.residual[0].weight
(z,), logdet = layer([x])
energy = z.square().sum() / 2
(alone,) = torch.autograd.grad(energy, weight, retain_graph=True)
(both,) = torch.autograd.grad(energy - logdet.sum(), weight)
equal = torch.equal(alone, both)
print(f"gradient of |z|^2 / 2 - log-determinant equals that of |z|^2 / 2: {equal}")
sys.exit(graphs != [(True, False), (True, True)] or not equal)
PYTHON
