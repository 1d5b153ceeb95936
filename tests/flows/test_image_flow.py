"""Properties of every image flow."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import (
    ConditionalGlow,
    ConvBlock,
    FlowPlusPlus,
    Glow,
    ImageFlow,
    IResNet,
    Jet,
    RealNVP,
    ResidualFlow,
)
from pyro_resflow.nn import (
    ConvConditioner,
    GatedAttentionConditioner,
    ResidualConditioner,
    TransformerConditioner,
)
from pyro_resflow.transforms import (
    CouplingStep,
    LogisticMixtureMap,
    Logit,
    MarginalGaussianization,
    UniformDequantization,
    initialize,
)

Shape = tuple[int, int, int]
FLOWS: dict[str, Callable[[Shape], ImageFlow]] = {
    "flow_plus_plus": lambda shape: FlowPlusPlus(
        shape,
        ((0, 1), (1, 1)),
        step=CouplingStep(
            GatedAttentionConditioner(8, 1, dropout=0.0),
            lambda: LogisticMixtureMap(2),
            mix_channels=False,  # of one channel there is nothing to mix
        ),
    ),
    "glow": lambda shape: Glow(shape, (2, 1), network=ConvConditioner(8)),
    "i_resnet": lambda shape: IResNet(shape, (1, 1), network=ConvBlock(8, coefficient=0.9)),
    "jet": lambda shape: Jet(
        shape, 4, patch_size=2, network=TransformerConditioner(8, 1, 2), channel_couplings=1
    ),
    "real_nvp": lambda shape: RealNVP(shape, network=ResidualConditioner(8, blocks=1), growth=2),
    "residual_flow": lambda shape: ResidualFlow(
        shape, (2, 1), network=ConvBlock(8), end_blocks=1, alpha=1e-6
    ),
}


@pytest.fixture(params=sorted(FLOWS))
def make(request: pytest.FixtureRequest) -> Callable[[Shape], ImageFlow]:
    torch.manual_seed(0)
    return FLOWS[request.param]


def trained(make: Callable[[Shape], ImageFlow], shape: Shape, steps: int = 5) -> ImageFlow:
    """The flow after a few steps, in evaluation mode."""
    flow = make(shape)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (-flow.distribution().log_prob(torch.rand(16, *shape)).mean()).backward()
        optimizer.step()
    return flow.eval()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 8)])
def test_scores_and_samples_images(make: Callable[[Shape], ImageFlow], shape: Shape) -> None:
    flow = trained(make, shape)
    d = flow.distribution()
    assert d.batch_shape == ()
    assert d.event_shape == shape
    assert d.log_prob(torch.rand(2, 3, *shape)).shape == (2, 3)
    assert d.log_prob(torch.rand(*shape)).shape == ()
    samples = d.sample((2, 3))
    assert samples.shape == (2, 3, *shape)
    assert samples.isfinite().all()


def test_encoding_and_decoding_reconstructs(make: Callable[[Shape], ImageFlow]) -> None:
    flow = trained(make, (1, 8, 8)).double()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        z = flow.inv(x)
        assert z.shape == (5, 64)
        assert (flow._call(z) - x).abs().max() < 1e-10


def test_every_parameter_learns(make: Callable[[Shape], ImageFlow]) -> None:
    flow = make((1, 8, 8))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    for _ in range(3):  # at first some wait for others that start at 0
        optimizer.zero_grad()
        (-flow.distribution().log_prob(torch.rand(16, 1, 8, 8)).mean()).backward()
        optimizer.step()
    still = [name for name, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_training_reproduces_bit_for_bit_from_pyros_seed(
    make: Callable[[Shape], ImageFlow],
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def train() -> list[Tensor]:
        pyro.set_rng_seed(3)
        flow = trained(make, (1, 8, 8))
        return [*flow.state_dict().values()]

    try:
        first, second = train(), train()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# residual blocks, which stretch by less than 2 each, need more of them and more steps
@pytest.mark.parametrize("make", ["flow_plus_plus", "glow", "real_nvp"], indirect=True)
def test_a_few_steps_learn_what_the_images_share(make: Callable[[Shape], ImageFlow]) -> None:
    rows = torch.linspace(0, 16, 8).round()[:, None].expand(32, 1, 8, 8)
    images = (rows + torch.randint(-1, 2, rows.shape)).clamp(0, 16)
    flow = make((1, 8, 8))
    initialize(flow, (images + torch.rand(images.shape)) / 17)
    d = Dequantized(flow.distribution(), UniformDequantization(17), 17)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = d.bits_per_dim(images).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(16, 1, 8, 8),
        torch.ones(16, 1, 8, 8),
        torch.full((16, 1, 8, 8), 0.5),
        (torch.rand(16, 1, 8, 8) > 0.5).float(),
    ],
)
def test_extreme_and_constant_images_stay_finite(
    make: Callable[[Shape], ImageFlow], images: Tensor
) -> None:
    flow = make((1, 8, 8))
    log_prob = flow.distribution().log_prob(images)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in flow.parameters())


def test_whole_flow_on_the_meta_device(make: Callable[[Shape], ImageFlow]) -> None:
    with torch.device("meta"):
        flow = make((1, 8, 8))
        distribution = flow.distribution()
        distribution._validate_args = False  # looking at a value needs one
        (-distribution.log_prob(torch.rand(4, 1, 8, 8)).mean()).backward()
    assert all(parameter.grad.is_meta for parameter in flow.parameters())


def test_bfloat16_autocast_trains(make: Callable[[Shape], ImageFlow]) -> None:
    flow = make((1, 8, 8))
    x = torch.rand(8, 1, 8, 8)
    initialize(flow, x)
    torch.manual_seed(0)  # of the probes
    expected = flow.distribution().log_prob(x).mean()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = -flow.distribution().log_prob(x).mean()
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in flow.parameters())
    assert (loss + expected).abs() < 0.02 * 64


def test_copy_after_log_prob_and_training_the_copy_leaves_the_original(
    make: Callable[[Shape], ImageFlow],
) -> None:
    flow = make((1, 8, 8))
    x = torch.rand(16, 1, 8, 8)
    flow.distribution().log_prob(x)
    before = [parameter.clone() for parameter in flow.parameters()]
    other = copy.deepcopy(flow)
    (-other.distribution().log_prob(x).mean()).backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(4, 1, 8, 7), "images: expected shape"),
        (torch.randint(0, 255, (4, 1, 8, 8)), "Integer images are scored through"),
    ],
)
def test_bad_images_are_named(
    make: Callable[[Shape], ImageFlow], bad: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make((1, 8, 8)).inv(bad)


WITH_INPUT_MAP: dict[str, Callable[[Shape, Transform], ImageFlow]] = {
    "flow_plus_plus": lambda shape, front: FlowPlusPlus(
        shape,
        ((0, 1),),
        step=CouplingStep(GatedAttentionConditioner(4, 1), mix_channels=False),
        input_map=front,
    ),
    "glow": lambda shape, front: Glow(shape, (1,), network=ConvConditioner(4), input_map=front),
    "i_resnet": lambda shape, front: IResNet(
        shape, (1,), network=ConvBlock(4, coefficient=0.9), input_map=front
    ),
    "real_nvp": lambda shape, front: RealNVP(
        shape, network=ResidualConditioner(4, blocks=1), input_map=front
    ),
    "residual_flow": lambda shape, front: ResidualFlow(
        shape, (1,), network=ConvBlock(4), end_blocks=0, input_map=front
    ),
}


@pytest.mark.parametrize(
    "front",
    [pytest.param(Logit(1e-3), marks=pytest.mark.slow), MarginalGaussianization(16)],
    ids=["logit", "marginal"],
)
@pytest.mark.parametrize("name", WITH_INPUT_MAP)
def test_every_flow_takes_an_input_map(name: str, front: Transform) -> None:
    torch.manual_seed(0)
    front = copy.deepcopy(front)
    flow = WITH_INPUT_MAP[name]((1, 4, 4), front)
    assert flow.encoder.parts[0] is front
    assert sum(isinstance(part, Logit) for part in flow.modules()) == isinstance(front, Logit)
    images = torch.rand(32, 1, 4, 4) ** 3
    initialize(flow, images)
    flow.eval()
    z = flow.inv(images)
    assert (flow(z.clone()) - images).abs().max() < 1e-4
    assert flow.distribution().sample((4,)).isfinite().all()


def test_a_conditional_flow_takes_an_input_map() -> None:
    front = MarginalGaussianization(16)
    flow = ConditionalGlow(
        (1, 4, 4), (1,), num_classes=3, network=ConvConditioner(4), input_map=front
    )
    labels, images = torch.randint(0, 3, (32,)), torch.rand(32, 1, 4, 4) ** 3
    initialize(flow, images, labels)
    expected = MarginalGaussianization(16)
    expected.fit(images)
    assert torch.equal(front.logits, expected.logits)
    assert flow.condition(labels).encoder.parts[0] is front


@pytest.mark.parametrize("flow", [FlowPlusPlus, RealNVP, ResidualFlow])
def test_a_logit_and_an_input_map_exclude_each_other(flow: type[ImageFlow]) -> None:
    with pytest.raises(ValueError, match=r"alpha, input_map: expected one of them, got alpha=0.1"):
        flow((1, 4, 4), alpha=0.1, input_map=MarginalGaussianization(16))


def test_a_flow_without_parameters_has_a_distribution() -> None:
    flow = FlowPlusPlus((1, 4, 4), couplings=((0, 0),))
    assert flow.distribution().log_prob(torch.rand(5, 1, 4, 4)).shape == (5,)
