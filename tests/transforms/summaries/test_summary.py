"""A summary lists the parts of a flow, and measures nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.distributions.conditional import ConditionalComposeTransformModule
from pyro.infer.autoguide import AutoIAFNormal
from torch import Tensor, nn
from torch.distributions import ComposeTransform

import pyro_resflow
from pyro_resflow import conditional_residual, conditional_residual_flow, residual, residual_flow
from pyro_resflow.classifiers import IResNetClassifier
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import (
    ConvBlock,
    DenseNetBlock,
    FlowPlusPlus,
    Glow,
    ImageFlow,
    IResNet,
    RealNVP,
    ResidualFlow,
)
from pyro_resflow.guides import AmortizedResidualFlow, AutoResidualFlow
from pyro_resflow.hybrid import Hybrid
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    ConvConditioner,
    GatedAttentionConditioner,
    LipschitzLayer,
    LipschitzMLP,
    ResidualConditioner,
    SpectralNorm,
)
from pyro_resflow.solvers import FixedPointSolver
from pyro_resflow.transforms import (
    ActNorm,
    Compose,
    ConditionalCompose,
    CouplingStep,
    Logit,
    Monotone,
    Residual,
    UniformDequantization,
    monotone,
)
from pyro_resflow.transforms.summaries.table import repeats

IMAGE = (1, 8, 8)
SMALL_STEP = CouplingStep(GatedAttentionConditioner(channels=8, blocks=1))
FLOWS: dict[str, Callable[[], Any]] = {
    "density": lambda: residual_flow(3, 2, [8], fast="density"),
    "sampling": lambda: residual_flow(3, 2, [8]),
    "conditional": lambda: conditional_residual_flow(3, 5, 2, [8], fast="density"),
    "ResidualFlow": lambda: ResidualFlow(
        IMAGE, (2, 1), network=ConvBlock(8), end_blocks=1, factor_out=True
    ),
    "i-DenseNet": lambda: ResidualFlow(
        IMAGE, (1,), network=DenseNetBlock(growth=8), end_blocks=0, block=Monotone
    ),
    "IResNet": lambda: IResNet(IMAGE, (1, 1), network=ConvBlock(8)),
    "Flow++": lambda: FlowPlusPlus(IMAGE, ((0, 2), (2, 1)), step=SMALL_STEP),
    "RealNVP": lambda: RealNVP(IMAGE, network=ResidualConditioner(8, blocks=1)),
    "Glow": lambda: Glow(IMAGE, (2, 1), network=ConvConditioner(8)),
}


def model() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_the_table_of_a_flow() -> None:
    flow = residual_flow(3, blocks=2, hidden_dims=[16], fast="density")
    assert str(pyro_resflow.summary(flow)).splitlines() == [
        "Inverse: (3,) -> (3,)",
        "",
        "transform                     shape  parameters  log-det  call      inverse   Lipschitz",
        "-" * 87,
        "2 times:",
        "  ActNorm.inv                 (3,)            6           one pass  one pass",
        "  Residual(LipschitzMLP).inv  (3,)          116  Exact    Anderson  one pass      0.960",
        "ActNorm.inv                   (3,)            6           one pass  one pass",
        "-" * 87,
        "parameters: 250, all trainable",
        "call (sampling): iterates (Anderson)",
        "inverse (log_prob): one pass",
        "Lipschitz: each network is held to at most 0.960; pyro_resflow.nn.check_contraction "
        "certifies it",
    ]


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_every_flow_prints_its_shapes_and_parameters(make: Callable[[], Any]) -> None:
    flow = make()
    found = flow.summary()
    assert str(flow) == str(found) == str(pyro_resflow.summary(flow))
    assert found.parameters == sum(each.numel() for each in flow.parameters())
    assert found.trainable == found.parameters
    is_image = isinstance(flow, ImageFlow)
    assert found.input_shape == (64 if is_image else 3,)
    assert found.output_shape == (IMAGE if is_image else (3,))
    in_line = [row for row in found.rows if not row.depth]
    for row, following in itertools.pairwise(in_line):
        assert row.output_shape == following.input_shape
        assert row.output_shape is not None
        assert row.output_shape.numel() == found.input_shape.numel()


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_an_inverse_is_read_from_the_other_end(make: Callable[[], Any]) -> None:
    flow = make()
    found, other = flow.summary(), flow.inv.summary()
    assert (other.input_shape, other.output_shape) == (found.output_shape, found.input_shape)
    for row, mirrored in zip(
        [row for row in found.rows if not row.depth],
        [row for row in other.rows if not row.depth][::-1],
        strict=True,
    ):
        assert (row.call, row.inverse) == (mirrored.inverse, mirrored.call)
        assert row.name.endswith(".inv") is not mirrored.name.endswith(".inv")
        assert row.parameters == mirrored.parameters


class Refusing(FixedPointSolver):
    """A solver that fails when it is used."""

    def solve(self, iteration: Any) -> Tensor:
        raise ArithmeticError


def iterates(direction: Callable[[Tensor], Tensor]) -> bool:
    """Whether a direction of a flow with a refusing solver asks it."""
    try:
        direction(torch.zeros(2, 3))
    except ArithmeticError:
        return True
    return False


@pytest.mark.parametrize("make", [residual, monotone])
@pytest.mark.parametrize("inverted", [False, True])
def test_directions_are_those_that_ask_the_solver(
    make: Callable[..., Any], inverted: bool
) -> None:
    block = make(3, [8], solver=Refusing())
    flow = block.inv if inverted else block
    (row,) = flow.summary().rows
    for text, direction in ((row.call, flow), (row.inverse, flow.inv)):
        assert text == ("Refusing" if iterates(direction) else "one pass")


def test_the_estimator_and_whether_it_is_random() -> None:
    flow = Compose([residual(9, [8]), residual(9, [8], logdet=Exact())])
    rows = flow.summary().rows
    assert [(row.logdet, row.random) for row in rows] == [("Krylov", True), ("Exact", False)]
    assert "log-determinant: random, new at every call (Krylov)" in str(flow)
    assert "random" not in str(residual(3))


def test_lipschitz_constants_are_products_of_coefficients_and_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow = Compose(
        [
            Residual(LipschitzMLP(2, [8, 8], norm=SpectralNorm(0.9))),
            Residual(LipschitzMLP(2, [8], norm=SpectralNorm(0.5))),
            Residual(nn.Sequential(nn.Linear(2, 2))),
            ActNorm(2),
        ]
    )
    monkeypatch.setattr(LipschitzLayer, "effective_weight", pytest.fail)
    found = flow.summary()
    assert [row.lipschitz for row in found.rows] == [
        pytest.approx(0.9**3),
        pytest.approx(0.5**2),
        None,
        None,
    ]
    assert found.lipschitz == pytest.approx(0.9**3)
    assert Compose([ActNorm(2)]).summary().lipschitz is None


def test_a_flow_on_the_meta_device() -> None:
    with torch.device("meta"):
        flow = Glow(IMAGE, (2, 1), network=ConvConditioner(8))
    assert flow.summary().output_shape == IMAGE


def test_a_conditioned_flow_has_the_rows_of_the_conditional_one() -> None:
    flow = conditional_residual_flow(3, 5, 2, [8])
    assert flow.condition(torch.zeros(7, 5)).summary().rows == flow.summary().rows
    assert flow.summary().rows[0].name == "ConditionalResidual(ConditionalLipschitzMLP)"


def test_distributions_guides_and_models_are_taken_for_their_flow() -> None:
    flow = ResidualFlow(IMAGE, (1,), network=ConvBlock(8), alpha=None)
    rows = flow.summary().rows
    pixels = Dequantized(flow.distribution(), UniformDequantization(16), 16)
    for holder in (flow.distribution(), flow.distribution().expand([4]), pixels, Hybrid(flow, 2)):
        assert pyro_resflow.summary(holder).rows == rows
    amortized = pyro_resflow.summary(AmortizedResidualFlow(2, 3, 1, [8]))
    assert amortized.name == "AmortizedResidualFlow"
    assert (amortized.rows[0].call, amortized.rows[0].inverse) == ("one pass", "Anderson")
    classifier = IResNetClassifier((1, 4, 4), blocks=(1,), hidden_channels=(8,), padding=3)
    assert pyro_resflow.summary(classifier).input_shape == (4, 4, 4)


def test_guides_have_a_flow_from_their_first_call_on() -> None:
    pyro.clear_param_store()
    guide = AutoResidualFlow(model, blocks=1, hidden_dims=[8])
    with pytest.raises(ValueError, match="got AutoResidualFlow without any"):
        pyro_resflow.summary(guide)
    guide()
    names = ["Residual(GatedLipschitzMLP)", "ActNorm", "TriangularAffine"]
    assert [row.name for row in pyro_resflow.summary(guide).rows] == names
    pyro.clear_param_store()
    other = AutoIAFNormal(model, hidden_dim=[8])
    other()
    (row,) = pyro_resflow.summary(other).rows
    assert row.name == "AffineAutoregressive"
    assert row.parameters == sum(each.numel() for each in other.parameters())


def test_what_holds_no_transform_is_refused() -> None:
    for nothing in (nn.Linear(2, 2), dist.Normal(0.0, 1.0), None, [], 3):
        with pytest.raises(ValueError, match=f"flow: .* got {type(nothing).__name__}"):
            pyro_resflow.summary(nothing)


def test_compositions_of_torch_and_pyro_are_taken_apart() -> None:
    parts = [T.ExpTransform(), residual(4, [8]), T.permute(4), T.planar(4).inv]
    names = ["ExpTransform", "Residual(LipschitzMLP)", "Permute", "Planar.inv"]
    base = dist.Normal(torch.zeros(4), 1.0).to_event(1)
    for flow in (
        ComposeTransform(parts),
        T.ComposeTransformModule(parts),
        Compose(parts),
        dist.TransformedDistribution(base, parts),
    ):
        found = pyro_resflow.summary(flow)
        assert [row.name for row in found.rows] == names
        assert [row.call for row in found.rows] == ["one pass", "one pass", "", ""]
        assert "call (sampling): one pass; not known for Permute, Planar.inv\n" in str(found)
        assert found.input_shape == found.output_shape == (4,)
    conditional = [conditional_residual(2, 3, [8]), ActNorm(2)]
    rows = ConditionalCompose(conditional).summary().rows
    assert pyro_resflow.summary(ConditionalComposeTransformModule(conditional)).rows == rows


def test_a_shape_that_no_part_knows_is_given() -> None:
    flow = Compose([Logit(0.05, event_dim=3)])
    assert flow.summary().input_shape is None
    assert str(flow).startswith("Compose: ? -> ?\n")
    assert flow.summary((3, 4, 4)).output_shape == (3, 4, 4)


def test_shared_parameters_count_once_and_frozen_ones_are_not_trainable() -> None:
    block = residual(2, [8])
    size = sum(each.numel() for each in block.parameters())
    flow = Compose([block, ActNorm(2), block]).requires_grad_(False)
    assert (flow.summary().parameters, flow.summary().trainable) == (size + 4, 0)
    assert f"parameters: {size + 4}, 0 trainable" in str(flow)


def test_transforms_inside_others_stand_below_them() -> None:
    rows = FLOWS["Glow"]().inv.summary().rows
    split = next(i for i, row in enumerate(rows) if row.name == "Split")
    assert rows[split].parameters == 0
    assert {row.depth for row in rows[split + 1 :]} == {1}
    assert rows[split + 1].input_shape == (2, 4, 4)


def test_long_flows_take_few_lines() -> None:
    flow = Glow((3, 32, 32), (8, 8, 8), network=ConvConditioner(4))
    assert len(flow.summary().rows) == 81
    assert len(str(flow).splitlines()) < 35


def test_repeats_cover_the_most_rows() -> None:
    a, b = residual(2, [8]).summary().rows[0], ActNorm(2).summary().rows[0]
    found = [(times, len(group)) for times, group in repeats([b, a, b, a, b, a, a])]
    assert found == [(3, 2), (1, 1)]
    assert [(times, len(group)) for times, group in repeats([a, b])] == [(1, 1), (1, 1)]


def test_errors_name_a_transform_in_one_line() -> None:
    assert repr(residual_flow(2)) == "Compose()"


def test_blocks_that_run_by_autograd_are_named_with_the_reason() -> None:
    def block(activation: nn.Module) -> Residual:
        return Residual(nn.Sequential(nn.Linear(2, 2), activation))

    found = pyro_resflow.summary(Compose([block(nn.ReLU()), block(nn.SiLU()), block(nn.ReLU())]))
    assert [row.why_autograd for row in found.rows] == [
        "1 (ReLU): its class has no stages",
        "",
        "1 (ReLU): its class has no stages",
    ]
    line = "evaluated by autograd, which is slower: Residual(Sequential): 1 (ReLU): its class has"
    assert str(found).count(line) == 1
    for flow in (block(nn.Tanh()), residual(2), conditional_residual(2, 3)):
        assert "autograd" not in str(pyro_resflow.summary(flow))
