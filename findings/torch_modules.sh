#!/usr/bin/env bash
# torch 2.14.1
#
# Behaviour: spectral_norm keeps its singular vectors in eval() even if the weight changes, and then the
# norm can have any value. AveragedModel with use_buffers=True raises an error at its second update if
# the model has a boolean buffer, and truncates the mean of an integer buffer. Under a
# TorchDispatchMode, _foreach operations do not increment `_version`. log_prob of an empty batch works
# for scalar events, and raises an error for vectors (Independent always, MultivariateNormal with
# validation). pixel_unshuffle of an empty batch keeps its shape. ComposeTransform.domain evaluates the
# domains of its parts five times, so nested compositions take exponential time. Under torch.compile,
# also with the backend "eager", the jvp of a custom Function is not called; its forward is
# differentiated instead, and the gradient of a Function has no graph.
# One would have guessed: a norm of 1 whenever the weight is read; buffers that cannot be averaged are
# copied; versions count every write; an empty batch gives an empty batch of the usual event shape; the
# cost is proportional to the number of transforms; compiled derivatives equal uncompiled ones.
# Output seen:
#   spectral_norm in eval(): norm 1.0, after copy_ to the weight 774.6
#   AveragedModel, boolean buffer: NotImplementedError
#   AveragedModel, integer buffer: mean of 3, 6, 7 is 5
#   writes that _version counts: 1 of 1, under a mode 0 of 1
#   log_prob of no samples: Normal (0,), Independent raises, MultivariateNormal raises
#   without validation: Independent raises, MultivariateNormal (0,)
#   pixel_unshuffle of (2, 1, 4, 4): (2, 4, 2, 2), of (0, 1, 4, 4): (0, 1, 4, 4)
#   look-ups of the innermost domain at depth 2, 4, 6: 13, 313, 7813
#   tangent of a Function with a jvp of its own: 400, compiled 12
#   gradient of the gradient of a Function: 12, compiled no graph
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' numpy
run <<'PYTHON'
import sys

import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.distributions.transforms import AffineTransform, ComposeTransform
from torch.func import jvp
from torch.nn.functional import pixel_unshuffle
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

torch.manual_seed(0)
layer = spectral_norm(nn.Linear(8, 8))
for _ in range(50):
    layer(torch.randn(1, 8))
layer.eval()


def norm():
    return torch.linalg.matrix_norm(layer.weight, 2).item()


norms = [norm()]
with torch.no_grad():
    layer.parametrizations.weight.original.copy_(torch.randn(8, 8))
norms.append(norm())
print("spectral_norm in eval(): norm {:.1f}, after copy_ to the weight {:.1f}".format(*norms))


def averaged(*values):
    model = nn.Linear(2, 2)
    model.register_buffer("extra", torch.tensor(values[0]))
    mean = AveragedModel(model, use_buffers=True)
    for value in values:
        model.extra.fill_(value)
        mean.update_parameters(model)
    return mean.module.extra.item()


try:
    raised = f"none: {averaged(True, True)}"
except NotImplementedError as error:
    raised = type(error).__name__
print(f"AveragedModel, boolean buffer: {raised}")
mean = averaged(3, 6, 7)
print(f"AveragedModel, integer buffer: mean of 3, 6, 7 is {mean}")


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def counted(tensor):
    before = tensor._version
    torch._foreach_add_([tensor], 1.0)
    return tensor._version - before


plain = counted(torch.zeros(2))
with Mode():
    under = counted(torch.zeros(2))
print(f"writes that _version counts: {plain} of 1, under a mode {under} of 1")

def outcome(kind, validate, shape, *arguments):
    distribution = kind(*arguments, validate_args=validate)
    try:
        return f"{kind.__name__} {tuple(distribution.log_prob(torch.zeros(shape)).shape)}"
    except RuntimeError:
        return f"{kind.__name__} raises"


loc, scale = torch.zeros(2), torch.ones(2)
cases = [
    (Independent, (0, 2), Normal(loc, scale, validate_args=False), 1),
    (MultivariateNormal, (0, 2), loc, torch.eye(2)),
]
checked = [outcome(Normal, True, (0,), 0.0, 1.0)]
checked += [outcome(kind, True, *rest) for kind, *rest in cases]
print(f"log_prob of no samples: {', '.join(checked)}")
free = [outcome(kind, False, *rest) for kind, *rest in cases]
print(f"without validation: {', '.join(free)}")
shapes = [tuple(pixel_unshuffle(torch.zeros(n, 1, 4, 4), 2).shape) for n in (2, 0)]
print("pixel_unshuffle of (2, 1, 4, 4): {}, of (0, 1, 4, 4): {}".format(*shapes))


class Counting(AffineTransform):
    asked = 0

    @property
    def domain(self):
        Counting.asked += 1
        return super().domain


def look_ups(depth):
    transform = Counting(0.0, 1.0)
    for _ in range(depth):
        transform = ComposeTransform([transform])
    Counting.asked = 0
    transform.domain  # noqa: B018
    return Counting.asked


counts = [look_ups(depth) for depth in (2, 4, 6)]
print("look-ups of the innermost domain at depth 2, 4, 6: {}, {}, {}".format(*counts))


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


class CubeWithTangent(Cube):
    """Its jvp is 100 x^2, so that a result says whether it was called."""

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 100 * x**2 * tangent


def tangent(x):
    return jvp(CubeWithTangent.apply, (x,), (torch.ones(()),))[1]


def second(function):
    x = torch.tensor(2.0, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x), x, create_graph=True)
    return torch.autograd.grad(slope, x)[0].item() if slope.requires_grad else "no graph"


tangents = [f(torch.tensor(2.0)).item() for f in (tangent, torch.compile(tangent, backend="eager"))]
print("tangent of a Function with a jvp of its own: {:g}, compiled {:g}".format(*tangents))
seconds = [second(Cube.apply), second(torch.compile(Cube.apply, backend="eager"))]
print("gradient of the gradient of a Function: {:g}, compiled {}".format(*seconds))
held = norms[0] < 1.01 and norms[1] > 10
sys.exit(
    not held
    or raised != "NotImplementedError"
    or (mean, plain, under) != (5, 1, 0)
    or checked != ["Normal (0,)", "Independent raises", "MultivariateNormal raises"]
    or free != ["Independent raises", "MultivariateNormal (0,)"]
    or shapes != [(2, 4, 2, 2), (0, 1, 4, 4)]
    or counts != [13, 313, 7813]
    or (tangents, seconds) != ([400, 12], [12, "no graph"])
)
PYTHON
