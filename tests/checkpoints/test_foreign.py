"""The transforms and modules of torch and Pyro that a file may name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions.transforms as T
import pyro.nn
import pytest
import torch
from torch import nn
from torch.distributions import transforms
from torch.distributions.transforms import _InverseTransform

from pyro_resflow.checkpoints import load, save
from pyro_resflow.checkpoints.decoding import Decoder
from pyro_resflow.checkpoints.encoding import Encoder
from pyro_resflow.checkpoints.foreign import FOREIGN
from pyro_resflow.transforms import Compose, ConditionalCompose

MADE: dict[str, Callable[[], Any]] = {
    "torch.AffineTransform": lambda: transforms.AffineTransform(0.5, 2.0, event_dim=1),
    "torch.ExpTransform": lambda: transforms.ExpTransform(cache_size=1),
    "torch.InverseTransform": lambda: transforms.SigmoidTransform().inv,
    "torch.PowerTransform": lambda: transforms.PowerTransform(torch.tensor(3.0)),
    "torch.ReshapeTransform": lambda: transforms.ReshapeTransform((4,), (2, 2)),
    "torch.SigmoidTransform": transforms.SigmoidTransform,
    "torch.SoftplusTransform": transforms.SoftplusTransform,
    "torch.TanhTransform": transforms.TanhTransform,
    "torch.ELU": lambda: nn.ELU(0.5),
    "torch.GELU": lambda: nn.GELU("tanh"),
    "torch.Identity": nn.Identity,
    "torch.Linear": lambda: nn.Linear(4, 4, bias=False),
    "torch.ReLU": nn.ReLU,
    "torch.Sequential": lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4)),
    "torch.SiLU": nn.SiLU,
    "torch.Sigmoid": nn.Sigmoid,
    "torch.Softplus": lambda: nn.Softplus(2.0, 9.0),
    "torch.Tanh": nn.Tanh,
    "pyro.AffineAutoregressive": lambda: T.affine_autoregressive(4, log_scale_max_clip=1.0),
    "pyro.AffineCoupling": lambda: T.affine_coupling(4, [8], log_scale_min_clip=-1.0),
    "pyro.ConditionalAffineAutoregressive": lambda: T.conditional_affine_autoregressive(
        4, 2, sigmoid_bias=1.0
    ),
    "pyro.ConditionalAffineCoupling": lambda: T.conditional_affine_coupling(
        4, 2, [8], log_scale_max_clip=1.0
    ),
    "pyro.Householder": lambda: T.householder(4, 2),
    "pyro.Permute": lambda: T.Permute(torch.tensor([1, 0, 3, 2])),
    "pyro.Planar": lambda: T.planar(4),
    "pyro.Radial": lambda: T.radial(4),
    "pyro.Spline": lambda: T.spline(4, count_bins=5, bound=2.0, order="quadratic"),
    "pyro.AutoRegressiveNN": lambda: pyro.nn.AutoRegressiveNN(
        4, [8], skip_connections=True, nonlinearity=nn.Tanh()
    ),
    "pyro.ConditionalAutoRegressiveNN": lambda: pyro.nn.ConditionalAutoRegressiveNN(4, 2, [8]),
    "pyro.ConditionalDenseNN": lambda: pyro.nn.ConditionalDenseNN(4, 2, [8], [1, 3]),
    "pyro.DenseNN": lambda: pyro.nn.DenseNN(4, [8], [2, 2], nonlinearity=nn.SiLU()),
}


def test_all_are_tried() -> None:
    assert MADE.keys() == FOREIGN.keys()


@pytest.mark.parametrize("name", sorted(MADE))
def test_each_is_made_again(name: str) -> None:
    made = MADE[name]()
    encoder = Encoder()
    node = encoder.encode(made)
    assert node["class"] == name
    again = Decoder(encoder.tensors, encoder.own).decode(node, name)
    assert type(again) is type(made)
    assert str(again) == str(made)
    if isinstance(made, nn.Module):
        again.load_state_dict(made.state_dict())
    x = torch.linspace(0.1, 0.9, 4).expand(3, 4)
    context = torch.ones(3, 2)
    if hasattr(made, "condition"):
        made, again = made.condition(context), again.condition(context)
    arguments = (x, context) if name.startswith("pyro.Conditional") and "NN" in name else (x,)
    first, second = made(*arguments), again(*arguments)
    pairs = (
        [(first, second)] if isinstance(first, torch.Tensor) else zip(first, second, strict=True)
    )
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", sorted(n for n in MADE if "Transform" in n or hasattr(T, n[5:])))
def test_each_transform_in_a_composition(name: str, tmp_path: Path) -> None:
    made = MADE[name]()
    whole = ConditionalCompose if hasattr(made, "condition") else Compose
    flow = whole([made])
    save(flow, tmp_path / "flow.safetensors")
    loaded = load(tmp_path / "flow.safetensors")
    x = torch.linspace(0.1, 0.9, 4).expand(3, 4)
    if isinstance(flow, ConditionalCompose):
        flow, loaded = (each.condition(torch.ones(3, 2)) for each in (flow, loaded))
    with torch.no_grad():
        assert torch.equal(loaded(x), flow(x))


def test_an_inverse_of_torchs_is_the_inverse_of_one_like_it() -> None:
    encoder = Encoder()
    node = encoder.encode(transforms.AffineTransform(1.0, 2.0).inv)
    again = Decoder(encoder.tensors, encoder.own).decode(node, "inverse")
    assert type(again) is _InverseTransform
    assert again(torch.tensor(5.0)) == 2.0
