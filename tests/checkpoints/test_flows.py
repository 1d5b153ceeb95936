"""Flows to files and back."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from pyro.infer.autoguide import AutoNormalizingFlow
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_resflow import conditional_residual_flow, residual, residual_flow
from pyro_resflow.checkpoints import (
    ContractionWarning,
    NotRebuildableError,
    UnknownClassError,
    load,
    save,
)
from pyro_resflow.classifiers import IResNetClassifier
from pyro_resflow.flows import ConvBlock, DenseNetBlock, ResidualFlow
from pyro_resflow.guides import AmortizedResidualFlow, AutoResidualFlow
from pyro_resflow.hybrid import Hybrid
from pyro_resflow.logdet import (
    AdaptiveKrylov,
    Exact,
    Frozen,
    Gaussian,
    Geometric,
    Krylov,
    NoTail,
    Poisson,
    PowerSeries,
    RussianRoulette,
)
from pyro_resflow.nn import (
    ELU,
    Chain,
    CLipSwish,
    Concatenated,
    InducedNorm,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLayer,
    LipschitzLinear,
    LipschitzMLP,
    SpectralNorm,
    Tanh,
    check_contraction,
)
from pyro_resflow.rebuilding import Rebuildable
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov
from pyro_resflow.transforms import (
    ActNorm,
    Compose,
    ConditionalCompose,
    Logit,
    Residual,
    UniformDequantization,
    set_logdet,
)
from tests.transforms.registry import CONDITIONAL, TRANSFORMS, Halved, SmallConditioner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flow.safetensors"


def again(flow: Any, path: Path, **options: Any) -> Any:
    """The flow, saved and loaded."""
    save(flow, path)
    return load(path, **options)


def check_same_state(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert torch.equal(tensor, states[1][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_every_transform_computes_the_same(name: str, dtype: torch.dtype, path: Path) -> None:
    case = TRANSFORMS[name]
    torch.set_default_dtype(dtype)
    try:
        transform = case.build()
        x = case.draw(4, *case.event_shape)
        save(transform, path)
    finally:
        torch.set_default_dtype(torch.float32)
    loaded = load(path, classes=[Halved, SmallConditioner])
    assert type(loaded) is type(transform)
    check_same_state(loaded, transform)
    with torch.no_grad():
        y, ladj = transform.call_and_ladj(x)
        again_y, again_ladj = loaded.call_and_ladj(x)
        assert torch.equal(again_y, y)
        assert torch.equal(again_ladj, ladj)
        assert torch.equal(loaded._inverse(y), transform._inverse(y))


@pytest.mark.parametrize("name", sorted(CONDITIONAL))
def test_every_conditional_transform_computes_the_same(name: str, path: Path) -> None:
    transform = CONDITIONAL[name](3, 2)
    loaded = again(transform, path, classes=[SmallConditioner])
    assert type(loaded) is type(transform)
    check_same_state(loaded, transform)
    x, context = torch.randn(4, 3), torch.randn(4, 2)
    with torch.no_grad():
        one, other = transform.condition(context), loaded.condition(context)
        assert torch.equal(one._call(x), other._call(x))


@pytest.mark.parametrize("training", [True, False])
def test_training_or_evaluation_mode_is_kept(training: bool, path: Path) -> None:
    flow = TRANSFORMS["real_nvp"].build().train(training)
    loaded = again(flow, path)
    assert {part.training for part in loaded.modules()} == {training}


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: LipschitzMLP(3, (8,), activation=Tanh, preactivation=True),
    "mlp_of_positional_arguments": lambda: LipschitzMLP(3, [8, 8]),
    "norm_for_each_layer": lambda: LipschitzMLP(
        3, [8], norm=[SpectralNorm(0.9), SpectralNorm(0.8, tolerance=None, max_iterations=3)]
    ),
    "induced_norms": lambda: LipschitzMLP(3, [8], norm=InducedNorm.chain(2, 1.5)),
    "conv_net": lambda: LipschitzConvNet((2, 4, 4), [4], kernel_sizes=[3, 1], activation=ELU),
    "dense_net": lambda: LipschitzDenseNet(3, depth=2, growth=4),
    "partial": lambda: LipschitzMLP(3, [8], activation=partial(Concatenated, Tanh(), bound=1.5)),
    "chain": lambda: Chain(
        [LipschitzLinear(3, 4, bias=False), CLipSwish(), LipschitzLinear(8, 3)]
    ),
    "dequantization": lambda: UniformDequantization(8),
    "densenet_flow": lambda: ResidualFlow(
        (1, 4, 4), [1], network=DenseNetBlock(2, 4, partial(CLipSwish)), end_blocks=0
    ),
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_other_modules(name: str, path: Path) -> None:
    module = MODULES[name]()
    loaded = again(module, path)
    assert str(loaded) == str(module)
    check_same_state(loaded, module)
    if isinstance(module, Chain):
        shape = getattr(module, "event_shape", (3,))
        x = torch.randn(4, *shape)
        assert torch.equal(loaded(x), module(x))


def test_models_around_a_flow(path: Path) -> None:
    posterior = AmortizedResidualFlow(2, 3, blocks=2, hidden_dims=[8])
    loaded = again(posterior, path)
    check_same_state(loaded, posterior)
    context, z = torch.randn(4, 3), torch.randn(4, 2)
    set_logdet(posterior, Exact())
    set_logdet(loaded, Exact())
    with torch.no_grad():
        expected = posterior.condition(context).log_prob(z)
        assert torch.equal(loaded.condition(context).log_prob(z), expected)
    flow = ResidualFlow((1, 4, 4), [1], network=ConvBlock(4), end_blocks=0, alpha=None)
    images = torch.rand(3, 1, 4, 4)
    for model in (
        Hybrid(flow, 3, hidden_channels=4),
        IResNetClassifier((1, 4, 4), 3, blocks=[1], hidden_channels=[4], padding=1),
    ):
        model(images)  # which sets the ActNorms
        model.eval()
        loaded = again(model, path)
        check_same_state(loaded, model)
        assert not loaded.training


STRATEGIES: dict[str, Callable[[], Any]] = {
    "exact": lambda: Exact(dtype=torch.float64, chunk_size=3),
    "krylov": lambda: Krylov(3, tail=NoTail(), probe=Frozen(Gaussian(), seed=7)),
    "adaptive": lambda: AdaptiveKrylov(1e-2, max_terms=9, tail=Geometric(0.25)),
    "roulette": lambda: RussianRoulette(2, tail=Poisson(3.0), num_probes=2, memory="keep"),
    "series": lambda: PowerSeries(7),
}


def attributes(strategy: Any) -> Any:
    """All that a strategy holds, and those inside it."""
    if not isinstance(strategy, Rebuildable):
        return strategy
    held = {name: value for name, value in vars(strategy).items() if name != "_made_with"}
    return type(strategy), {name: attributes(value) for name, value in held.items()}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_estimators(name: str, path: Path) -> None:
    logdet = STRATEGIES[name]()
    given = again(residual_flow(3, 2, [8], logdet=logdet), path)
    changed = residual_flow(3, 2, [8])
    set_logdet(changed, logdet)
    for flow in (given, again(changed, path)):
        blocks = [part for part in flow.modules() if isinstance(part, Residual)]
        assert attributes(blocks[0].logdet) == attributes(logdet)
        assert blocks[0].logdet is blocks[1].logdet  # one for all, as it was


def test_an_estimator_changed_in_place(path: Path) -> None:
    flow = residual(3, [8], logdet=Krylov(probe=Frozen(seed=1)))
    flow.logdet.probe.seed = 2
    flow.logdet.terms = 5
    assert attributes(again(flow, path).logdet) == attributes(flow.logdet)


@pytest.mark.parametrize(
    "solver", [FixedPoint(tolerance=1e-3), NewtonKrylov(), Anderson(3, patience=2)]
)
def test_solvers(solver: Any, path: Path) -> None:
    assert attributes(again(residual(3, [8], solver=solver), path).solver) == attributes(solver)
    flow = residual(3, [8])
    flow.solver = solver
    assert attributes(again(flow, path).solver) == attributes(solver)


def test_numbers_that_were_set(path: Path) -> None:
    flow = Compose([Logit(0.05), residual(3, [8])])
    flow.parts[0].alpha = 0.1
    flow.parts[1].net[0].norm.coefficient = 0.5
    loaded = again(flow, path)
    assert loaded.parts[0].alpha == 0.1
    assert loaded.parts[1].net[0].norm.coefficient == 0.5
    x = 0.1 + 0.8 * torch.rand(4, 3)
    assert torch.equal(loaded(x), flow(x))


def trained(flow: Transform, data: Tensor) -> Transform:
    """The flow after a few steps, its last weights not measured yet."""
    size = data.shape[-1]
    base = dist.Normal(torch.zeros(size), 1.0).to_event(1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (-dist.TransformedDistribution(base, [flow]).log_prob(data).mean()).backward()
        optimizer.step()
    return flow


def test_buffers_of_a_trained_flow(path: Path) -> None:
    data = 3 + torch.randn(50, 2)
    flow = trained(residual_flow(2, 2, [8], fast="density"), data)
    loaded = again(flow, path)
    norms = [part for part in loaded.modules() if isinstance(part, ActNorm)]
    assert all(bool(norm.initialized) for norm in norms)
    layers = [part for part in loaded.modules() if isinstance(part, LipschitzLayer)]
    assert all(layer.is_current for layer in layers)  # nothing is measured anew
    with torch.no_grad():
        assert torch.equal(loaded.inv(data), flow.inv(data))


def test_an_actnorm_that_waits_for_its_batch_goes_on_waiting(path: Path) -> None:
    loaded = again(ActNorm(2), path)
    assert not bool(loaded.initialized)
    y = loaded(5 + torch.randn(100, 2))
    assert y.mean().abs() < 1e-5


def test_training_goes_on_as_if_nothing_had_happened(path: Path) -> None:
    data = torch.randn(50, 2)
    flow = trained(residual_flow(2, 2, [8], fast="density", logdet=Exact()), data)
    loaded = again(flow, path)
    check_same_state(trained(loaded, data), trained(flow, data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_kept(dtype: torch.dtype, path: Path) -> None:
    flow = residual_flow(2, 2, [8]).to(dtype)
    assert {p.dtype for p in again(flow, path).parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_is_the_one_asked_for(dtype: torch.dtype, path: Path) -> None:
    save(residual_flow(2, 2, [8]), path)
    loaded = load(path, dtype=dtype)
    floating = {t.dtype for t in loaded.state_dict().values() if t.is_floating_point()}
    assert floating == {dtype}
    assert loaded.parts[1].initialized.dtype == torch.bool


def test_the_default_type_has_no_part_in_it(path: Path) -> None:
    save(residual_flow(2, 2, [8]), path)
    torch.set_default_dtype(torch.float64)
    try:
        assert {p.dtype for p in load(path).parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_tensors_of_several_types(path: Path) -> None:
    flow = Compose([residual(2, [8]), residual(2, [8])])
    flow.parts[1].double()
    check_same_state(again(flow, path), flow)


def test_tensors_among_the_arguments(path: Path) -> None:
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64)
    flow = Compose(
        [
            torch.distributions.AffineTransform(torch.ones(2), scale),
            pyro_transforms.Permute(torch.tensor([1, 0])),
            torch.distributions.AffineTransform(0.0, scale),
        ]
    )
    loaded = again(flow, path)
    assert loaded.parts[0].scale is loaded.parts[2].scale
    assert loaded.parts[0].scale.dtype == torch.float64
    assert torch.equal(loaded(torch.ones(2)), flow(torch.ones(2)))
    single = load(path, dtype=torch.float32)
    assert single.parts[0].scale.dtype == torch.float32
    assert single.parts[1].permutation.dtype == torch.int64


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
def test_devices(device: str, path: Path) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    flow = Compose([residual(2, [8]), pyro_transforms.Permute(torch.tensor([1, 0]))])
    save(flow, path)
    loaded = load(path, device=device)
    assert {t.device.type for t in loaded.state_dict().values()} == {device}
    x = torch.randn(4, 2)
    y = loaded._call(x.to(device))
    assert y.device.type == device
    if device != "meta":
        torch.testing.assert_close(y.cpu(), flow._call(x))
        check_same_state(again(loaded, path, device="cpu"), flow)


def test_the_default_device(path: Path) -> None:
    save(residual(2, [8]), path)
    with torch.device("meta"):
        assert all(p.is_meta for p in load(path).parameters())
        assert not any(p.is_meta for p in load(path, device="cpu").parameters())


def test_parameters_that_are_shared_come_back_shared(path: Path) -> None:
    block = residual(2, [8], norm=InducedNorm.chain(2))
    flow = Compose([block, ActNorm(2, initialized=True), block])
    loaded = again(flow, path)
    assert loaded.parts[0] is loaded.parts[2]
    norms = [layer.norm for layer in loaded.parts[0].net if isinstance(layer, LipschitzLayer)]
    assert norms[0].codomain_logit is norms[1].domain_logit
    assert norms[1].codomain_logit is norms[0].domain_logit
    assert len(list(loaded.parameters())) == len(list(flow.parameters()))
    x = torch.randn(4, 2)
    assert torch.equal(loaded(x), flow(x))
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    assert not torch.equal(loaded(x), flow(x))


def test_a_network_in_two_blocks(path: Path) -> None:
    net = LipschitzMLP(2, [8])
    loaded = again(Compose([Residual(net), Residual(net, logdet=Krylov())]), path)
    assert loaded.parts[0].net is loaded.parts[1].net


# Classes of the user's own


class Sine(Rebuildable, nn.Module):
    """A user's network, whose wave is no parameter and does not stand in the state."""

    def __init__(self, size: int, *, frequency: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.calls = 0
        self.register_buffer("wave", torch.full((size,), frequency), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * torch.sin(self.wave * self.linear(x))


class Cube(ELU):
    """A user's activation."""


@dataclass(frozen=True)
class Narrow:
    """A user's recipe."""

    width: int = 4

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Chain:
        return ConvBlock(self.width)(event_shape, preactivation=preactivation)


def test_own_classes(path: Path) -> None:
    flow = Compose([Residual(Sine(2, frequency=3.0)), residual(2, [8], activation=Cube)])
    flow.parts[0].net.calls = 4
    save(flow, path)
    loaded = load(path, classes=[Sine, Cube])
    assert type(loaded.parts[0].net) is Sine
    assert loaded.parts[0].net.calls == 4
    x = torch.randn(4, 2)
    assert torch.equal(loaded._call(x), flow._call(x))
    assert (
        load(path, classes=[Sine, Cube], dtype=torch.float64)._call(x.double()).dtype
        == torch.float64
    )


def test_own_recipes(path: Path) -> None:
    flow = ResidualFlow((1, 4, 4), [1], network=Narrow(3), end_blocks=0)
    save(flow, path)
    check_same_state(load(path, classes=[Narrow]), flow)


@pytest.mark.parametrize("classes", [[], [Sine], [Narrow, Cube]])
def test_own_classes_have_to_be_given(classes: list[type], path: Path) -> None:
    save(Compose([Residual(Sine(2)), residual(2, [8], activation=Cube)]), path)
    missing = sorted({"Sine", "Cube"} - {each.__name__ for each in classes})
    with pytest.raises(UnknownClassError, match=rf"classes=\[{', '.join(missing)}\]"):
        load(path, classes=classes)


def test_two_classes_of_one_name(path: Path) -> None:
    other = type("Sine", (Sine,), {"__module__": "elsewhere"})
    with pytest.raises(NotRebuildableError, match="two classes named Sine"):
        save(Compose([Residual(Sine(2)), Residual(other(2))]), path)
    with pytest.raises(UnknownClassError, match="two classes named Sine"):
        load(path, classes=[Sine, other])
    with pytest.raises(UnknownClassError, match="expected classes"):
        load(path, classes=[residual])


class Plain(nn.Module):
    """A user's network that says nothing of itself."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


class Once(Rebuildable, nn.Module):
    """A user's network that takes what it is given apart."""

    def __init__(self, options: dict[str, float]) -> None:
        super().__init__()
        self.slope = options["slope"]
        if self.slope > 0.4:
            Once.made = getattr(Once, "made", 0) + 1
            if Once.made > 1:
                raise ValueError("there can be one only")

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x


class Stateful(Rebuildable, nn.Module):
    """A user's network with a state beside its tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x

    def get_extra_state(self) -> object:
        return "more"

    def set_extra_state(self, state: object) -> None:
        pass


def estimate(net: nn.Module, x: Tensor, event_dim: int | None = None) -> tuple[Tensor, Tensor]:
    return net(x), x.new_zeros(x.shape[:-1])


def make_activation(alpha: float) -> nn.Module:
    return ELU()


def replaced_part() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    flow.parts[0].net[1] = Tanh()
    return flow


def grown() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    flow.add_module("more", nn.Linear(2, 2))
    return flow


def wider() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    flow.parts[0].net[0].bias = nn.Parameter(torch.zeros(9))
    return flow


def tied() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    flow.parts[2].net[0].bias = flow.parts[0].net[0].bias
    return flow


def set_function() -> nn.Module:
    flow = residual_flow(2, 2, [8])
    set_logdet(flow, estimate)
    return flow


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "lambda": (
        lambda: residual(2, [8], activation=lambda: ELU()),
        "activation of LipschitzMLP, net of Residual: the function .*<lambda>",
    ),
    "partial_of_a_function": (
        lambda: residual(2, [8], activation=partial(make_activation, 1.0)),
        "activation of LipschitzMLP, net of Residual: a partial application of the function",
    ),
    "function": (
        lambda: residual(2, logdet=estimate),
        "logdet of Residual: the function estimate",
    ),
    "function_set_later": (set_function, r"0\.logdet, set since the flow was made: the function"),
    "generator": (
        lambda: Compose(residual(2) for _ in range(2)),
        "parts of Compose: a generator, which can be run through only once",
    ),
    "plain_module": (
        lambda: Residual(Plain()),
        "net of Residual: an object of class Plain, which is not Rebuildable",
    ),
    "extra_state": (lambda: Residual(Stateful()), "'net' has a state beside its tensors"),
    "once": (lambda: Residual(Once({"slope": 0.5})), "cannot be made again as it was: flow.net"),
    "replaced_part": (
        replaced_part,
        r"'0\.net\.1' is .*Tanh where its constructor makes .*LipSwish",
    ),
    "grown": (grown, r"'more' is .*Linear where its constructor makes nothing"),
    "wider": (wider, r"'0\.net\.0\.bias' not as its constructor makes"),
    "tied": (tied, r"'2\.net\.0\.bias' is the same as '0\.net\.0\.bias'"),
    "distribution": (
        lambda: ResidualFlow((1, 4, 4), [1], network=ConvBlock(4)).distribution(),
        "expected a transform that is a module, got TransformedDistribution",
    ),
    "torchs": (lambda: torch.distributions.ExpTransform(), "got ExpTransform"),
    "meta": (lambda: residual(2, [8]).to("meta"), "on the meta device"),
    "guide": (
        lambda: AutoResidualFlow(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))),
        "AutoResidualFlow, which is not Rebuildable",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_could_not_be_loaded_is_not_saved(name: str, path: Path) -> None:
    make, message = REFUSED[name]
    path.write_bytes(b"what was there before")
    with pytest.raises(NotRebuildableError, match=message):
        save(make(), path)
    assert path.read_bytes() == b"what was there before"


def test_saving_and_loading_draw_no_random_numbers(path: Path) -> None:
    flow = Compose([residual(2, [8]), pyro_transforms.affine_coupling(2)])
    state = torch.get_rng_state()
    again(flow, path)
    assert torch.equal(torch.get_rng_state(), state)


def test_saving_leaves_the_flow_alone(path: Path) -> None:
    flow = residual_flow(2, 2, [8])
    x = torch.randn(4, 2)
    before = flow(x)
    parameters = [id(p) for p in flow.parameters()]
    save(flow, path)
    assert [id(p) for p in flow.parameters()] == parameters
    assert torch.equal(flow(x), before)


def test_loading_in_inference_mode(path: Path) -> None:
    flow = residual_flow(2, 2, [8])
    save(flow, path)
    with torch.inference_mode():
        loaded = load(path)
    assert not any(p.is_inference() for p in loaded.parameters())
    trained(loaded, torch.randn(10, 2))


def test_a_flow_that_has_diverged_is_saved_and_warned_of(path: Path) -> None:
    flow = residual_flow(2, 2, [8])
    with torch.no_grad():
        flow.parts[0].net[0].weight.fill_(torch.nan)
    save(flow, path)
    with pytest.warns(ContractionWarning, match=f"{path}: .*nan"):
        load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, certify=False)


def test_norms_that_were_passed_by_are_warned_of(path: Path) -> None:
    flow = residual_flow(2, 2, [8])
    flow(torch.randn(4, 2))
    flow.parts[0].net[0].weight.data.mul_(30)  # of which nobody is told
    save(flow, path)
    with pytest.warns(ContractionWarning, match=r"too low for its weights.*'0\.net\.0'"):
        load(path)


def test_induced_norms_are_not_warned_of(path: Path) -> None:
    net = LipschitzMLP(3, [8], norm=InducedNorm.chain(2, 1.5, 0.9))
    with pytest.raises(ValueError, match="certified"):
        check_contraction(net)  # whose bound is too loose
    save(net, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path)


def test_the_flows_of_guides(path: Path) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    for guide in (
        AutoResidualFlow(model, blocks=2, hidden_dims=[8]),
        AutoNormalizingFlow(model, partial(residual_flow, blocks=2, hidden_dims=[8])),
    ):
        pyro.clear_param_store()
        guide()
        x = torch.randn(4, 3)
        with torch.no_grad():
            assert torch.equal(again(guide.transform, path)(x), guide.transform(x))


def test_copies_and_pickles_can_be_saved(path: Path) -> None:
    flow = residual_flow(2, 2, [8], norm=InducedNorm.chain(2))
    x = torch.randn(4, 2)
    for other in (copy.deepcopy(flow), copy.copy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(again(other, path)(x), flow(x))
    twice = again(again(flow, path), path)
    assert torch.equal(twice(x), flow(x))


def test_a_converted_copy_can_be_saved(path: Path) -> None:
    flow = copy.deepcopy(residual_flow(2, 2, [8], norm=InducedNorm.chain(2))).double()
    check_same_state(again(flow, path), flow)


def test_the_inverse_of_a_saved_flow(path: Path) -> None:
    flow = conditional_residual_flow(2, 3, 1, [8], logdet=Exact())
    loaded = again(flow.inv, path)
    x, context = torch.randn(4, 2), torch.randn(4, 3)
    assert torch.equal(loaded.condition(context)(x), flow.inv.condition(context)(x))
    assert isinstance(loaded.inv, ConditionalCompose)
