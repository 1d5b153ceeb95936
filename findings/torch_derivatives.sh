#!/usr/bin/env bash
# torch 2.14.1
#
# Behaviour: jacfwd of jacfwd of slogdet is 0, and that of det is not the Hessian; jacrev of jacfwd of
# slogdet is 0, too. jvp of jvp of a custom Function drops the second derivative. Where an entry equals
# a bound, the gradient of clamp is 0 if the bound is a number and 1/2 if it is a tensor.
# One would have guessed: the order of forward and reverse mode does not change a Hessian; clamp has
# one rule for both kinds of bounds.
# Output seen:
#   slogdet, largest entry of the Hessian: fwd-fwd 0.000, rev-fwd 0.000, fwd-rev 1.406, rev-rev 1.406
#   det, largest entry of the Hessian: fwd-fwd 1.363, rev-rev 1.000
#   second derivative of x^3 at 2, jvp of jvp: 12 as an expression, 0 as a Function
#   the Function otherwise: 12 by grad of jvp, 12 by grad of grad
#   gradient of clamp at its bound: 0.0 for a number, 0.5 for a tensor
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' numpy
run <<'PYTHON'
import sys

import torch
from torch.func import grad, jacfwd, jacrev, jvp


def largest(outer, inner, function):
    matrix = torch.eye(2) + 0.3 * torch.tensor([[0.0, 1.0], [2.0, 0.5]])
    return round(outer(inner(function))(matrix).abs().max().item(), 3)


orders = [(jacfwd, jacfwd), (jacrev, jacfwd), (jacfwd, jacrev), (jacrev, jacrev)]
slogdet = [largest(*order, lambda matrix: torch.linalg.slogdet(matrix)[1]) for order in orders]
names = "fwd-fwd", "rev-fwd", "fwd-rev", "rev-rev"
shown = ", ".join(f"{name} {value:.3f}" for name, value in zip(names, slogdet, strict=True))
print(f"slogdet, largest entry of the Hessian: {shown}")
det = [largest(*orders[0], torch.linalg.det), largest(*orders[-1], torch.linalg.det)]
print("det, largest entry of the Hessian: fwd-fwd {:.3f}, rev-rev {:.3f}".format(*det))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangent

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


def slope(function):
    return lambda x: jvp(function, (x,), (torch.ones(()),))[1]


at = torch.tensor(2.0)
twice = [slope(slope(f))(at).item() for f in (lambda x: x**3, Cube.apply)]
print(
    "second derivative of x^3 at 2, jvp of jvp: "
    f"{twice[0]:g} as an expression, {twice[1]:g} as a Function"
)
others = [grad(slope(Cube.apply))(at).item(), grad(grad(Cube.apply))(at).item()]
print("the Function otherwise: {:g} by grad of jvp, {:g} by grad of grad".format(*others))

clamped = [grad(lambda x, b=b: x.clamp(max=b))(torch.tensor(1.0)).item() for b in (1.0, at / 2)]
print("gradient of clamp at its bound: {} for a number, {} for a tensor".format(*clamped))
sys.exit(
    slogdet != [0.0, 0.0, 1.406, 1.406]
    or det != [1.363, 1.0]
    or (twice, others, clamped) != ([12, 0], [12, 12], [0, 0.5])
)
PYTHON
