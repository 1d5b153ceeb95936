"""The transforms and modules of torch and Pyro that a file may name, and their arguments.

They do not record their constructor arguments; the table says which attributes hold them. A file
cannot create an instance of any other torch or Pyro class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as pyro_transforms
import pyro.nn
from torch import nn
from torch.distributions import transforms
from torch.distributions.transforms import _InverseTransform

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_CACHE = {"cache_size": "_cache_size"}
_DENSE = ("input_dim", "hidden_dims", "param_dims")
_CLIPS = ("log_scale_min_clip", "log_scale_max_clip")


def _attributes(*names: str, **renamed: str) -> Callable[[Any], Arguments]:
    """Read each argument from the attribute of the same name, or from the one given for it."""
    where = dict(zip(names, names, strict=True)) | renamed
    return lambda made: ((), {name: getattr(made, where[name]) for name in where})


def _linear(made: Any) -> Arguments:
    features = {"in_features": made.in_features, "out_features": made.out_features}
    return (), {**features, "bias": made.bias is not None}


def _autoregressive(*context_dim: str) -> Callable[[Any], Arguments]:
    attributes = _attributes(*context_dim, *_DENSE, "permutation", nonlinearity="f")

    def arguments(made: Any) -> Arguments:
        skips = {"skip_connections": made.skip_layer is not None}
        return (), {**attributes(made)[1], **skips}

    return arguments


FOREIGN: dict[str, tuple[type, Callable[[Any], Arguments]]] = {
    # torch.distributions
    "torch.AffineTransform": (
        transforms.AffineTransform,
        _attributes("loc", "scale", event_dim="_event_dim", **_CACHE),
    ),
    "torch.ExpTransform": (transforms.ExpTransform, _attributes(**_CACHE)),
    "torch.InverseTransform": (_InverseTransform, _attributes(transform="_inv")),
    "torch.PowerTransform": (transforms.PowerTransform, _attributes("exponent", **_CACHE)),
    "torch.ReshapeTransform": (
        transforms.ReshapeTransform,
        _attributes("in_shape", "out_shape", **_CACHE),
    ),
    "torch.SigmoidTransform": (transforms.SigmoidTransform, _attributes(**_CACHE)),
    "torch.SoftplusTransform": (transforms.SoftplusTransform, _attributes(**_CACHE)),
    "torch.TanhTransform": (transforms.TanhTransform, _attributes(**_CACHE)),
    # torch.nn
    "torch.ELU": (nn.ELU, _attributes("alpha")),
    "torch.GELU": (nn.GELU, _attributes("approximate")),
    "torch.Identity": (nn.Identity, _attributes()),
    "torch.Linear": (nn.Linear, _linear),
    "torch.ReLU": (nn.ReLU, _attributes()),
    "torch.Sequential": (nn.Sequential, lambda made: (tuple(made), {})),
    "torch.SiLU": (nn.SiLU, _attributes()),
    "torch.Sigmoid": (nn.Sigmoid, _attributes()),
    "torch.Softplus": (nn.Softplus, _attributes("beta", "threshold")),
    "torch.Tanh": (nn.Tanh, _attributes()),
    # pyro.distributions.transforms
    "pyro.AffineAutoregressive": (
        pyro_transforms.AffineAutoregressive,
        _attributes(*_CLIPS, "sigmoid_bias", "stable", autoregressive_nn="arn"),
    ),
    "pyro.AffineCoupling": (
        pyro_transforms.AffineCoupling,
        _attributes("split_dim", "dim", *_CLIPS, hypernet="nn"),
    ),
    "pyro.ConditionalAffineAutoregressive": (
        pyro_transforms.ConditionalAffineAutoregressive,
        lambda made: ((made.nn,), made.kwargs),
    ),
    "pyro.ConditionalAffineCoupling": (
        pyro_transforms.ConditionalAffineCoupling,
        lambda made: ((made.split_dim, made.nn), made.kwargs),
    ),
    "pyro.Householder": (
        pyro_transforms.Householder,
        lambda made: ((made.input_dim, len(made.u_unnormed)), {}),
    ),
    "pyro.Permute": (pyro_transforms.Permute, _attributes("permutation", "dim", **_CACHE)),
    "pyro.Planar": (pyro_transforms.Planar, lambda made: ((len(made.u),), {})),
    "pyro.Radial": (pyro_transforms.Radial, lambda made: ((len(made.x0),), {})),
    "pyro.Spline": (
        pyro_transforms.Spline,
        _attributes("input_dim", "count_bins", "bound", "order"),
    ),
    # pyro.nn
    "pyro.AutoRegressiveNN": (pyro.nn.AutoRegressiveNN, _autoregressive()),
    "pyro.ConditionalAutoRegressiveNN": (
        pyro.nn.ConditionalAutoRegressiveNN,
        _autoregressive("context_dim"),
    ),
    "pyro.ConditionalDenseNN": (
        pyro.nn.ConditionalDenseNN,
        _attributes("context_dim", *_DENSE, nonlinearity="f"),
    ),
    "pyro.DenseNN": (pyro.nn.DenseNN, _attributes(*_DENSE, nonlinearity="f")),
}
"""For each name in a file: the class, and a function that returns an instance's arguments."""

FOREIGN_NAMES = {made: name for name, (made, _) in FOREIGN.items()}
