"""The width of the context that a zuko flow takes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("zuko")

from pyro_resflow.interop.zuko import from_zuko
from tests.interop.zuko_flows import C, D

import zuko  # isort: skip  # after the adapter, which keeps the validation of arguments

EVERY_FLOW = ["MAF", "NSF", "NCSF", "NICE", "GF", "NAF", "UNAF", "CNF", "SOSPF", "BPF"]


@pytest.mark.parametrize("name", EVERY_FLOW)
@pytest.mark.parametrize("inverse", [False, True])
def test_a_context_dim_that_is_not_the_flows_is_named(name: str, inverse: bool) -> None:
    make = getattr(zuko.flows, name)
    conditional, unconditional = make(D, C).transform, make(D).transform
    if inverse:
        conditional, unconditional = conditional.inv, unconditional.inv
    for wrong in (None, C + 1):
        with pytest.raises(ValueError, match=rf"^context_dim: expected {C}, .* got {wrong}\."):
            from_zuko(conditional, context_dim=wrong)
    with pytest.raises(ValueError, match=rf"^context_dim: expected None, .* got {C}\. Leave it"):
        from_zuko(unconditional, context_dim=C)
    t = from_zuko(conditional, context_dim=C).condition(torch.zeros(C))
    assert t.inv(torch.zeros(7, D)).shape == from_zuko(unconditional).inv(torch.zeros(7, D)).shape


@pytest.mark.parametrize("features", [1, D])
@pytest.mark.parametrize("name", ["MAF", "NICE", "CNF"])
def test_the_width_of_a_context_does_not_depend_on_the_network(name: str, features: int) -> None:
    make = getattr(zuko.flows, name)
    options = [{"hidden_features": ()}, {"hidden_features": (8,), "activation": torch.nn.SiLU}]
    if name == "MAF" and features > 1:
        options.append({"hidden_features": (16, 16), "residual": True})
    for option in options:
        flow = make(features, C, **option)
        assert from_zuko(flow, context_dim=C).condition(torch.zeros(C)).domain.event_dim == 1
        with pytest.raises(ValueError, match=rf"^context_dim: expected {C}"):
            from_zuko(flow)


def test_parts_that_ignore_contexts_agree_with_every_width() -> None:
    exp = zuko.lazy.UnconditionalTransform(zuko.transforms.ExpTransform)
    flow = zuko.lazy.LazyComposedTransform(zuko.flows.MAF(D, C).transform, exp)
    assert from_zuko(flow, context_dim=C).condition(torch.zeros(C)).codomain.event_dim == 1
    assert from_zuko(exp, context_dim=C).condition(torch.zeros(C))(torch.ones(D)).shape == (D,)
    with pytest.raises(ValueError, match=r"^context_dim: expected at least 1"):
        from_zuko(exp, context_dim=0)


def test_parts_made_for_contexts_of_different_widths_are_refused() -> None:
    parts = [zuko.flows.MAF(D, C).transform, zuko.flows.MAF(D).transform]
    with pytest.raises(ValueError, match=r"^lazy: expected parts .* widths \[0, 2\]"):
        from_zuko(zuko.lazy.LazyComposedTransform(*parts), context_dim=C)
