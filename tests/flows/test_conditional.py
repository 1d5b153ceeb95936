"""Properties of every conditional image flow."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_resflow import checkpoints
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import (
    ConditionalFlowPlusPlus,
    ConditionalGlow,
    ConditionalImageFlow,
    ConditionalJet,
    ConditionalRealNVP,
    ConditionalResidualFlow,
    ConvBlock,
    DenseNetBlock,
    FlowPlusPlus,
    Glow,
    ImageFlow,
    Jet,
    MLPBlock,
    RealNVP,
    ResidualFlow,
)
from pyro_resflow.logdet import Exact, Krylov
from pyro_resflow.nn import (
    ConvConditioner,
    GatedAttentionConditioner,
    GatedEncoder,
    ResidualConditioner,
    TransformerConditioner,
    check_contraction,
)
from pyro_resflow.transforms import (
    AffineMap,
    ConditionalAffine,
    CouplingStep,
    Monotone,
    UniformDequantization,
    VariationalDequantization,
    initialize,
    temporary_logdet,
)
from tests.derivatives import jacobian

SHAPE = (1, 4, 4)
STEP = CouplingStep(GatedAttentionConditioner(4, 1, None), AffineMap, mix_channels=False)
MODELS: dict[str, tuple[type[ConditionalImageFlow], type[ImageFlow], dict[str, object]]] = {
    "flow_plus_plus": (
        ConditionalFlowPlusPlus,
        FlowPlusPlus,
        {"couplings": ((0, 1), (1, 1)), "step": STEP},
    ),
    "glow": (ConditionalGlow, Glow, {"steps": (1, 1), "network": ConvConditioner(4)}),
    "jet": (
        ConditionalJet,
        Jet,
        {
            "couplings": 2,
            "patch_size": 2,
            "channel_couplings": 1,
            "network": TransformerConditioner(4, blocks=1, heads=2),
        },
    ),
    "real_nvp": (ConditionalRealNVP, RealNVP, {"network": ResidualConditioner(4, blocks=1)}),
    "residual_flow": (
        ConditionalResidualFlow,
        ResidualFlow,
        {
            "blocks": (1, 1),
            "network": ConvBlock(4),
            "end_blocks": 1,
            "end_network": MLPBlock((8,)),
            "logdet": Exact(),
        },
    ),
    "residual_flow_factor_out": (
        ConditionalResidualFlow,
        ResidualFlow,
        {
            "blocks": (0, 1),  # nothing before the split depends on the context
            "network": DenseNetBlock(1, 4),
            "end_blocks": 0,
            "factor_out": True,
            "logdet": Exact(),
        },
    ),
}


QUICK = {"glow", "jet", "residual_flow"}
"""The slow tests repeat some properties for the other models."""


@pytest.fixture(params=sorted(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return request.param


@pytest.fixture(
    params=[
        each if each in QUICK else pytest.param(each, marks=pytest.mark.slow)
        for each in sorted(MODELS)
    ]
)
def quick_name(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return request.param


def build(name: str, **kind: int) -> ConditionalImageFlow:
    """A small flow, initialised and moved away from its start, in float64."""
    model, _, settings = MODELS[name]
    flow = model(SHAPE, **kind, **settings)
    context = torch.arange(20) % 3 if "num_classes" in kind else torch.randn(20, 5)
    initialize(flow, torch.rand(20, *SHAPE), context=context)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.double().eval()


def images(*batch: int) -> Tensor:
    return torch.rand(*batch, *SHAPE, dtype=torch.float64)


def test_a_label_gives_an_image_flow(name: str) -> None:
    flow = build(name, num_classes=3).condition(torch.tensor(1))
    assert isinstance(flow, ImageFlow)
    d = flow.distribution()
    assert (d.batch_shape, d.event_shape) == ((), SHAPE)
    x = images(5)
    with torch.no_grad():
        z, ladj = flow.encoder.call_and_ladj(x)
        assert (flow._call(z) - x).abs().max() < 1e-9
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian(flow.encoder, x))[1])
    torch.testing.assert_close(
        d.log_prob(x), ladj - z.square().sum(-1) / 2 - 8 * math.log(2 * math.pi)
    )
    assert d.sample((2, 3)).shape == (2, 3, *SHAPE)


def test_batches_of_labels_and_of_images_broadcast(name: str) -> None:
    flow, x = build(name, num_classes=3), images(5)
    every = flow.condition(torch.arange(3)).distribution()
    assert every.batch_shape == (3,)
    found = every.log_prob(x[:, None])
    expected = [flow.condition(torch.tensor(y)).distribution().log_prob(x) for y in range(3)]
    torch.testing.assert_close(found, torch.stack(expected, dim=-1))
    assert (found[:, 0] - found[:, 1]).abs().min() > 1e-3  # the label matters
    torch.testing.assert_close(every.log_prob(x[0]), found[0])
    torch.testing.assert_close(flow.inv.condition(torch.arange(3))(x[0]).shape, (3, 16))
    assert every.sample((2,)).shape == (2, 3, *SHAPE)


def test_vectors_are_contexts_too(quick_name: str) -> None:
    flow, x = build(quick_name, context_dim=5), images(4)
    context = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    log_prob = flow.condition(context).distribution().log_prob(x)
    assert log_prob.shape == (4,)
    (gradient,) = torch.autograd.grad(log_prob.sum(), context)
    assert gradient.abs().min() > 0
    base = dist.Normal(torch.zeros(16, dtype=torch.float64), 1.0).to_event(1)
    for d in (dist.ConditionalTransformedDistribution(base, [flow]), flow.distribution()):
        torch.testing.assert_close(d.condition(context).log_prob(x), log_prob)


def test_every_parameter_learns(quick_name: str) -> None:
    model, _, settings = MODELS[quick_name]
    flow = model(SHAPE, num_classes=3, **settings)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    labels = torch.arange(16) % 3
    for _ in range(3):  # at first some wait for others that start at 0
        optimizer.zero_grad()
        d = flow.condition(labels).distribution()
        (-d.log_prob(torch.rand(16, *SHAPE)).mean()).backward()
        optimizer.step()
    assert not [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_file_keeps_the_flow_and_its_settings(quick_name: str, tmp_path: Path) -> None:
    flow = build(quick_name, num_classes=3)
    checkpoints.save(flow, tmp_path / "flow.safetensors")
    other = checkpoints.load(tmp_path / "flow.safetensors").eval()
    assert type(other) is type(flow)
    x, labels = images(3), torch.arange(3)
    expected = flow.condition(labels).distribution().log_prob(x)
    assert torch.equal(other.condition(labels).distribution().log_prob(x), expected)


@pytest.mark.parametrize("model", ["jet", "residual_flow_factor_out"])
def test_a_file_keeps_the_flow_at_a_context(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    flow = build(model, num_classes=3).condition(torch.tensor([0, 2]))
    checkpoints.save(flow, tmp_path / "flow.safetensors")
    other = checkpoints.load(tmp_path / "flow.safetensors").eval()
    assert other.distribution().batch_shape == (2,)
    x = images(2)
    expected = flow.distribution().log_prob(x)
    assert torch.equal(other.distribution().log_prob(x), expected)


def test_without_a_context_the_flow_is_built_as_before(name: str) -> None:
    """Both flows have the same parts; the conditional one has one more at the end."""
    model, plain, settings = MODELS[name]
    torch.manual_seed(1)
    conditional = [
        type(part).__name__ for part in model(SHAPE, context_dim=2, **settings).encoder.parts
    ]
    parts = [type(part).__name__ for part in plain(SHAPE, **settings).encoder.parts]
    assert [part.replace("Conditional", "") for part in conditional] == [*parts, "Affine"]


def test_caches_belong_to_one_context() -> None:
    flow = build("real_nvp", num_classes=3)
    x = images(4)
    values = [flow.condition(torch.tensor(y)).distribution().log_prob(x) for y in (0, 1, 0)]
    assert torch.equal(values[0], values[2])
    assert not torch.allclose(values[0], values[1])


def test_residual_blocks_stay_contractions_for_every_context() -> None:
    flow = build("residual_flow", context_dim=5)
    check_contraction(flow)
    far = flow.condition(1e3 * torch.randn(4, 5, dtype=torch.float64))
    check_contraction(far)
    assert max(row.lipschitz for row in flow.summary().rows if row.lipschitz) < 1
    x = images(4)
    with torch.no_grad():
        assert (far._call(far.inv._call(x)) - x).abs().max() < 1e-8


def test_the_krylov_estimate_of_a_conditional_flow_is_unbiased() -> None:
    flow, x = build("residual_flow", num_classes=3), images(1)
    exact = flow.condition(torch.tensor(2)).encoder.call_and_ladj(x)[1]
    with torch.no_grad(), temporary_logdet(flow, Krylov()):
        draws = flow.condition(torch.tensor(2)).encoder.call_and_ladj(x.expand(400, *SHAPE))[1]
    z = (draws.mean() - exact) / (draws.std() / 20)
    assert z.abs() < 4


def test_gradients_are_those_of_central_differences() -> None:
    """Against central differences, for all parameters of the chains and of the contexts."""
    flow, x = build("residual_flow", context_dim=5), images(3)
    context = torch.randn(3, 5, dtype=torch.float64)
    value = flow.condition(context).distribution().log_prob(x).sum()
    found = torch.autograd.grad(value, [*flow.parameters()])
    directions = [torch.randn_like(parameter) for parameter in flow.parameters()]
    values, step = [], 1e-6
    for sign in (1, -2):  # one step ahead, then one step behind
        with torch.no_grad():
            for parameter, direction in zip(flow.parameters(), directions, strict=True):
                parameter.add_(sign * step * direction)
            values.append(flow.condition(context).distribution().log_prob(x).sum())
    slope = (values[0] - values[1]) / (2 * step)
    products = [(g * d).sum() for g, d in zip(found, directions, strict=True)]
    torch.testing.assert_close(torch.stack(products).sum(), slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "context", "message"),
    [
        ({"num_classes": 3}, torch.tensor([0, 3]), r"labels 0 .. 2 .*got labels from 0 to 3"),
        ({"num_classes": 3}, torch.tensor([-1, 2]), "got labels from -1 to 2"),
        (
            {"num_classes": 3},
            torch.tensor([0.0, 1.0]),
            "expected integer labels .*got torch.float32",
        ),
        ({"num_classes": 3}, torch.tensor([True]), "expected integer labels .*got torch.bool"),
        ({"context_dim": 5}, torch.randn(7, 4), r"context: expected shape \(\*batch, 5\)"),
        ({"context_dim": 5}, torch.tensor([1, 2, 0, 1, 1]), "For integer labels, build the flow"),
        (
            {"context_dim": 5},
            torch.randn(7, 5, dtype=torch.float64),
            "context: expected torch.float32",
        ),
    ],
)
def test_bad_contexts_are_named(kind: dict[str, int], context: Tensor, message: str) -> None:
    flow = ConditionalGlow(SHAPE, (1,), network=ConvConditioner(4), **kind)
    with pytest.raises(ValueError, match=message):
        flow.condition(context)


def test_labels_of_another_batch_than_the_images_are_named(quick_name: str) -> None:
    flow = build(quick_name, num_classes=3).condition(torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"context: .* that of the input, \(5,\), got \(4,\)"):
        flow.inv(images(5))


@pytest.mark.parametrize("context", [1, [0, 1], None])
def test_labels_that_are_no_tensor_are_named(context: object) -> None:
    flow = build("glow", num_classes=3)
    with pytest.raises(TypeError, match=r"context: expected a tensor, got a .*torch.as_tensor"):
        flow.condition(context)


def test_labels_go_with_their_images_when_chunks_initialise() -> None:
    flow = ConditionalGlow(SHAPE, (1,), num_classes=2, network=ConvConditioner(4))
    labels = torch.arange(20) % 2
    pixels = torch.rand(20, *SHAPE) + labels[:, None, None, None]
    states = []
    for chunk_size in (None, 7):
        initialize(flow, pixels / 2, context=labels, chunk_size=chunk_size)
        states.append({name: value.clone() for name, value in flow.state_dict().items()})
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-4)


def test_any_integer_dtype_is_a_label() -> None:
    flow, x = build("glow", num_classes=3), images(3)
    labels = torch.arange(3)
    expected = flow.condition(labels).distribution().log_prob(x)
    for dtype in (torch.uint8, torch.int32):
        found = flow.condition(labels.to(dtype)).distribution().log_prob(x)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("given", [{}, {"num_classes": 3, "context_dim": 5}])
def test_one_kind_of_context_has_to_be_chosen(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="num_classes, context_dim: expected"):
        ConditionalGlow(SHAPE, (1,), **given)


def test_blocks_and_networks_that_cannot_depend_on_a_context_are_named() -> None:
    with pytest.raises(ValueError, match=r"block: expected Residual.*Monotone"):
        ConditionalResidualFlow(SHAPE, (1,), num_classes=3, block=Monotone)

    def recipe(shape: torch.Size, *, preactivation: bool) -> torch.nn.Module:
        return torch.nn.Identity()

    with pytest.raises(ValueError, match="network: expected a recipe"):
        ConditionalResidualFlow(SHAPE, (1,), num_classes=3, network=recipe)
    with pytest.raises(TypeError, match="ConditionalRealNVP: there is no argument 'scale'"):
        ConditionalRealNVP(SHAPE, num_classes=3, scale=2)


@pytest.mark.parametrize("variational", [False, True])
def test_dequantized_images_of_a_class_are_learned(variational: bool) -> None:
    """Class 0 has dark images, class 1 bright ones; the right class gives fewer bits."""
    torch.manual_seed(0)
    labels = torch.arange(32) % 2
    pixels = torch.randint(0, 6, (32, *SHAPE)) + 10 * labels[:, None, None, None]
    flow = ConditionalGlow(SHAPE, (1,), num_classes=2, network=ConvConditioner(8))
    dequantizer = (
        VariationalDequantization(SHAPE, 16, 1, step=STEP, features=GatedEncoder(4, 1))
        if variational
        else UniformDequantization(16)
    )
    initialize(flow, (pixels + torch.rand(pixels.shape)) / 16, context=labels)
    trained = [*flow.parameters(), *getattr(dequantizer, "parameters", tuple)()]
    optimizer = torch.optim.Adam(trained, lr=3e-2)

    def bits(context: Tensor) -> Tensor:
        d = Dequantized(flow.condition(context).distribution(), dequantizer, 16)
        return d.bits_per_dim(pixels)

    for _ in range(15):
        optimizer.zero_grad()
        bits(labels).mean().backward()
        optimizer.step()
    right, wrong = bits(labels), bits(1 - labels)
    assert (right < wrong).all()
    assert right.mean() < math.log2(16)


def test_a_conditional_flow_is_an_amortized_guide() -> None:
    """SVI fits images z of the two classes, with prior N(0.5, 0.1) and a noisy mean as data."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    flow = ConditionalGlow(SHAPE, (1,), num_classes=2, network=ConvConditioner(4))
    initialize(flow, torch.rand(32, *SHAPE), context=torch.arange(32) % 2)
    labels, means = torch.tensor([0, 1]), torch.tensor([0.2, 0.8])

    def model() -> None:
        with pyro.plate("classes", 2):
            z = pyro.sample("z", dist.Normal(0.5, 0.3).expand(SHAPE).to_event(3))
            pyro.sample("mean", dist.Normal(z.mean((-3, -2, -1)), 0.01), obs=means)

    def guide() -> None:
        pyro.module("flow", flow)
        with pyro.plate("classes", 2):
            pyro.sample("z", flow.condition(labels).distribution())

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO(8, vectorize_particles=True))
    losses = [svi.step() for _ in range(30)]
    assert losses[-1] < losses[0]
    draws = flow.condition(labels).distribution().sample((200,))
    found = draws.mean((0, 2, 3, 4))
    assert found[0] < 0.35 < 0.65 < found[1]


def test_the_base_of_each_class_starts_as_standard_normal() -> None:
    flow = ConditionalGlow(SHAPE, (1,), num_classes=3, network=ConvConditioner(4))
    assert isinstance(flow.encoder.parts[-1], ConditionalAffine)
    z = torch.randn(3, 16)
    vectors = flow.encoder.context(torch.arange(3))
    assert torch.equal(flow.encoder.parts[-1].condition(vectors)(z), z)
