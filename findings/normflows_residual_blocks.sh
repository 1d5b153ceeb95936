#!/usr/bin/env bash
# normflows 1.7.3 with torch 2.14.1
#
# Behaviour: in train() and with reduce_memory=True, the default, nf.flows.Residual returns a number
# that has the gradient of the log-determinant, but not its value. Its gradient multiplies the gradient
# of every sample by the weight of the first sample. A convolution is normalised for the size of the
# first images that it gets: for larger images its norm may exceed the given constant, and even 1.
# One would have guessed: the training loss is that of the density; the gradients are those of the
# loss; blocks stay invertible at every image size.
# Output seen:
#   log-determinant 4.055: train() 3.35 +- 0.02, eval() 4.06 +- 0.00
#   without reduce_memory: train() 4.06 +- 0.01
#   weights 1, 5, -3, 2: the gradient is that of weights 1, 1, 1, 1
#   without reduce_memory: it is not
#   norm of a 3x3 convolution held to 0.9 on 4x4 images: 0.905 there, 1.089 on 16x16
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'normflows==1.7.3' numpy
run <<'PYTHON'
import sys

import normflows as nf
import numpy as np
import torch


def estimate(training, **options):
    block = nf.flows.Residual(half, **options).train(training)
    draws = [block.inverse(torch.zeros(1000, 10))[1].mean().item() for _ in range(300)]
    return np.mean(draws), np.std(draws) / len(draws) ** 0.5


torch.manual_seed(0)
np.random.seed(0)
half = torch.nn.Linear(10, 10, bias=False)
half.weight.data = torch.eye(10) / 2
train, test, kept = estimate(True), estimate(False), estimate(True, reduce_memory=False)
shown = ["{:.2f} +- {:.2f}".format(*pair) for pair in (train, test, kept)]
print(f"log-determinant 4.055: train() {shown[0]}, eval() {shown[1]}")
print(f"without reduce_memory: train() {shown[2]}")
right = [abs(mean - 10 * np.log(1.5)) < 5 * error for mean, error in (train, test, kept)]


def gradient(weights, reduce_memory):
    torch.manual_seed(1)
    np.random.seed(1)
    net = nf.nets.LipschitzMLP([2, 16, 2], lipschitz_const=0.9, init_zeros=False)
    block = nf.flows.Residual(net, reduce_memory=reduce_memory)
    loss = (block.inverse(torch.randn(4, 2))[1] * torch.tensor(weights)).sum()
    return torch.autograd.grad(loss, net.net[1].weight)[0]


same = [
    torch.allclose(gradient([1.0, 5.0, -3.0, 2.0], mode), gradient([1.0] * 4, mode))
    for mode in (True, False)
]
print(f"weights 1, 5, -3, 2: the gradient is {'' if same[0] else 'not '}that of weights 1, 1, 1, 1")
print(f"without reduce_memory: it is{'' if same[1] else ' not'}")

torch.manual_seed(0)
options = {"max_lipschitz_iter": None, "lipschitz_tolerance": 1e-3, "init_zeros": False}
net = nf.nets.LipschitzCNN([2, 8, 2], [3, 3], lipschitz_const=0.9, **options)
convolution = net.net[1]
convolution.weight.data *= 5
net(torch.zeros(1, 2, 4, 4))


@torch.no_grad()
def norm(size):
    net(torch.zeros(1, 2, size, size))
    nf.utils.update_lipschitz(net, None)
    images = torch.eye(2 * size * size).view(-1, 2, size, size)
    weight = convolution.compute_weight(update=False)
    return torch.linalg.matrix_norm(torch.conv2d(images, weight, padding=1).flatten(1), 2).item()


norms = norm(4), norm(16)
print(
    f"norm of a 3x3 convolution held to 0.9 on 4x4 images: {norms[0]:.3f} there, "
    f"{norms[1]:.3f} on 16x16"
)
sys.exit(right != [False, True, True] or same != [True, False] or not norms[0] < 1 < norms[1])
PYTHON
