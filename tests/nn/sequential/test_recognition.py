"""Which plain networks are evaluated in stages; all others keep the general way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize

from pyro_resflow import residual
from pyro_resflow.linearization import AutogradNetwork, as_linearizable
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import LipschitzMLP, why_autograd
from pyro_resflow.nn.stages import StagedNetwork
from pyro_resflow.transforms import Residual
from tests.nn.sequential.variants import VARIANTS, build

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Sequential(nn.Linear(4, 4)))


def images() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.SiLU())


def same_as_the_general_way(net: nn.Sequential, event_dim: int = 1) -> None:
    """Raise unless a block computes the values and gradients of the general way."""
    net.double()
    x = torch.randn(3, *[4] * event_dim, dtype=torch.float64)
    if event_dim == 3:
        x = x[:, :2]
    results = []
    for each in (net, AutogradNetwork(net)):
        block = Residual(each, event_dim=event_dim, logdet=Exact())
        point = x.clone().requires_grad_()
        y, ladj = block.call_and_ladj(point)
        options = {"allow_unused": True, "materialize_grads": True}
        wanted = [point, *(p for p in net.parameters() if p.requires_grad)]
        gradients = torch.autograd.grad(y.sin().sum() + ladj.sum(), wanted, **options)
        results.append([y, ladj, *gradients])
    torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.parametrize("name", VARIANTS)
def test_there_is_no_reason_against_stages(name: str) -> None:
    net, _ = build(name)
    assert why_autograd(net) == ""
    assert isinstance(as_linearizable(net), StagedNetwork)


def test_own_networks_need_no_autograd() -> None:
    assert why_autograd(LipschitzMLP(2)) == ""
    assert why_autograd(residual(2).net) == ""


def doubled(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return 2 * output


class TwiceLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class TwiceSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Backwards(nn.Sequential):
    def __iter__(self) -> Iterator[nn.Module]:
        return reversed(list(super().__iter__()))


class Shifted(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight, bias) + 1


class TwiceWeight(nn.Linear):
    @property
    def weight(self) -> Tensor:
        return 2 * self._parameters["weight"]


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.t()) / 2


class OwnParameter(nn.Parameter):
    pass


def with_forward(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: 3 * x
    return layer


def with_class(layer: nn.Module, cls: type[nn.Module]) -> nn.Module:
    layer.__class__ = cls
    return layer


def hooked(register: str, hook: Callable[..., object]) -> nn.Sequential:
    net = plain()
    getattr(net[2][0], register)(hook)
    return net


def container_hooked() -> nn.Sequential:
    net = plain()
    net[2].register_forward_hook(doubled)
    return net


def parametrization_hooked() -> nn.Sequential:
    layer = parametrizations.weight_norm(nn.Linear(4, 4))
    layer.parametrizations["weight"][0].register_forward_hook(doubled)
    return nn.Sequential(layer)


def frozen(name: str) -> nn.Sequential:
    net = plain()
    net[0].get_parameter(name).requires_grad_(False)
    return net


def frozen_parametrization() -> nn.Sequential:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)).requires_grad_(False))


def own_parametrization() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return nn.Sequential(layer)


def computed_weight() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    weight = layer.weight.detach().double()
    del layer.weight
    layer.weight = weight
    return nn.Sequential(layer, nn.Tanh())


def own_parameter() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    layer.weight = OwnParameter(layer.weight.detach())
    return nn.Sequential(layer)


def compiled() -> nn.Sequential:
    net = plain()
    net[1]._compiled_call_impl = net[1]._call_impl  # as nn.Module.compile sets it
    return net


EXCEPTIONS: dict[str, tuple[Callable[[], nn.Sequential], str]] = {
    "forward hook": (
        lambda: hooked("register_forward_hook", doubled),
        "2.0 (Linear): it has hooks",
    ),
    "forward pre-hook": (
        lambda: hooked("register_forward_pre_hook", lambda module, args: (2 * args[0],)),
        "2.0 (Linear): it has hooks",
    ),
    "hook on a container": (container_hooked, "2 (Sequential): it has hooks"),
    "hook on a parametrization": (
        parametrization_hooked,
        "0 (ParametrizedLinear): its weight has a parametrization with hooks",
    ),
    "forward": (
        lambda: nn.Sequential(TwiceLinear(4, 4)),
        "0 (TwiceLinear): it overrides forward",
    ),
    "forward of a container": (
        lambda: TwiceSequential(nn.Linear(4, 4)),
        "net (TwiceSequential): it overrides forward",
    ),
    "order of a container": (
        lambda: Backwards(nn.Linear(4, 4), nn.Tanh()),
        "net (Backwards): it overrides __iter__",
    ),
    "forward of an instance": (
        lambda: nn.Sequential(nn.Linear(4, 4), with_forward(nn.Tanh())),
        "1 (Tanh): it overrides forward",
    ),
    "a property for the weight": (
        lambda: nn.Sequential(with_class(nn.Linear(4, 4), TwiceWeight)),
        "0 (TwiceWeight): its weight is not a parameter",
    ),
    "a tensor for the weight": (computed_weight, "0 (Linear): its weight is not a parameter"),
    "a parameter of an own class": (
        own_parameter,
        "0 (Linear): its weight is of class OwnParameter",
    ),
    "frozen weight": (lambda: frozen("weight"), "0 (Linear): its weight is frozen"),
    "frozen bias": (lambda: frozen("bias"), "0 (Linear): its bias is frozen"),
    "frozen parametrization": (
        frozen_parametrization,
        "0 (ParametrizedLinear): its weight is frozen",
    ),
    "own parametrization": (
        own_parametrization,
        "0 (ParametrizedLinear): its weight has an unknown parametrization, Symmetric",
    ),
    "old weight_norm": (
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4))),
        "0 (Linear): it has hooks",
    ),
    "old spectral_norm": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4))).eval(),
        "0 (Linear): it has hooks",
    ),
    "compiled layer": (compiled, "1 (SiLU): it is compiled"),
    "other activation": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Softsign()),
        "1 (Softsign): its class has no stages",
    ),
    "Dropout": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval(),
        "1 (Dropout): its class has no stages",
    ),
    "BatchNorm": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(),
        "1 (BatchNorm1d): its class has no stages",
    ),
    "no layer": (lambda: nn.Sequential(nn.Identity()), "net: it has no layer"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("name", EXCEPTIONS)
def test_a_network_that_stages_would_change_keeps_the_general_way(name: str) -> None:
    make, reason = EXCEPTIONS[name]
    net = make()
    assert why_autograd(net) == reason
    assert isinstance(as_linearizable(net), AutogradNetwork)
    same_as_the_general_way(net)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Shifted(2, 2, 1), "0 (Shifted): it overrides _conv_forward"),
        (
            nn.ConvTranspose2d(2, 2, 3, padding=3, dilation=3, output_padding=1),
            "0 (ConvTranspose2d): its output_padding is not below its stride",
        ),
        (nn.Flatten(0), "0 (Flatten): its start_dim is not above 0"),
        (nn.Unflatten(-1, (2, 2)), "0 (Unflatten): its dim is not an integer above 0"),
    ],
    ids=["own _conv_forward", "output_padding", "Flatten", "Unflatten"],
)
def test_a_setting_without_stages_keeps_the_general_way(layer: nn.Module, reason: str) -> None:
    assert why_autograd(nn.Sequential(layer)) == reason


def test_other_modules_keep_the_general_way() -> None:
    assert why_autograd(nn.Linear(2, 2)) == "net (Linear): its class has no stages"
    assert why_autograd(AutogradNetwork(plain())) == "net: it is an AutogradNetwork"


@contextmanager
def registered(register: str, hook: Callable[..., object]) -> Iterator[None]:
    handle = getattr(torch_module, register)(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("register", "hook"),
    [
        ("register_module_forward_hook", doubled),
        ("register_module_forward_pre_hook", lambda module, args: (2 * args[0],)),
        ("register_module_full_backward_hook", lambda module, before, after: None),
        ("register_module_full_backward_pre_hook", lambda module, after: None),
    ],
)
def test_hooks_for_all_modules_are_called(register: str, hook: Callable[..., object]) -> None:
    net, called = plain(), []

    def noting(module: nn.Module, *args: object) -> object:
        called.append(module)
        return hook(module, *args)

    with registered(register, noting):
        assert why_autograd(net) == "net: hooks are registered for all modules"
        Residual(net).call_and_ladj(torch.randn(2, 4))[0].sum().backward()
        assert any(each is net[1] for each in called)
    assert why_autograd(net) == ""


def test_hooks_of_one_layer_are_called() -> None:
    net, called = plain(), []
    net[1].register_full_backward_hook(lambda *args: called.append(args[0]))
    Residual(net).call_and_ladj(torch.randn(2, 4))[0].sum().backward()
    assert called


def test_a_subclass_that_changes_no_evaluation_is_evaluated_in_stages() -> None:
    class Built(nn.Sequential):
        def __init__(self, width: int) -> None:
            super().__init__(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 4))

    net = Built(5)
    assert why_autograd(net) == ""
    same_as_the_general_way(net)


def test_power_iterations_in_training_keep_the_general_way() -> None:
    """torch's spectral_norm draws one at each access, so that the number of accesses counts."""
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh())
    reason = "its weight changes at each access in training mode (spectral_norm)"
    assert why_autograd(net) == f"0 (ParametrizedLinear): {reason}"
    assert why_autograd(net.eval()) == ""
    same_as_the_general_way(net)
    net[0].parametrizations["weight"][0].train()
    assert why_autograd(net) == f"0 (ParametrizedLinear): {reason}"


def test_changes_of_a_network_take_effect_at_once() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ELU(), nn.Conv2d(2, 2, 1))
    handles = []
    changes: list[tuple[Callable[[], object], bool]] = [
        (lambda: None, True),
        (lambda: setattr(net[1], "alpha", 0.3), True),
        (lambda: setattr(net[0], "padding_mode", "circular"), True),
        (lambda: setattr(net[0], "padding_mode", "zeros"), True),
        (lambda: (setattr(net[0], "dilation", 2), setattr(net[0], "padding", 2)), True),
        (lambda: (setattr(net[0], "dilation", (1, 1)), setattr(net[0], "padding", "same")), True),
        (lambda: setattr(net[0], "weight", nn.Parameter(torch.randn(2, 2, 5, 5) / 9)), True),
        (lambda: setattr(net[0], "bias", None), True),
        (lambda: net.append(nn.Tanh()), True),
        (lambda: setattr(net, "1", nn.GELU()), True),
        (lambda: setattr(net[1], "approximate", "tanh"), True),
        (lambda: net.insert(1, nn.BatchNorm2d(2).eval()), False),
        (lambda: net.pop(1), True),
        (lambda: handles.append(net[0].register_forward_hook(doubled)), False),
        (lambda: handles.pop().remove(), True),
        (lambda: parametrizations.spectral_norm(net[2]).eval(), True),
        (lambda: parametrize.remove_parametrizations(net[2], "weight"), True),
        (lambda: net.requires_grad_(False), False),
        (lambda: net.requires_grad_(True), True),
    ]
    for change, is_staged in changes:
        change()
        assert (why_autograd(net) == "") is is_staged
        same_as_the_general_way(net, event_dim=3)


TORCHLIP = """
class PadConv2d(nn.Conv2d):
    def __init__(self, *args, is_symmetric=False):
        super().__init__(*args)
        self.pad = nn.ReflectionPad2d(1) if is_symmetric else lambda x: x

    def forward(self, input):
        return super().forward(self.pad(input))
"""


def test_convolutions_of_deel_torchlip_are_evaluated_in_stages_unless_they_pad() -> None:
    """Its class, with the same names: the library itself is not installed here."""
    namespace = {"nn": nn, "__name__": "deel.torchlip.modules.unconstrained"}
    exec(TORCHLIP, namespace)
    convolution = namespace["PadConv2d"]
    net = nn.Sequential(parametrizations.weight_norm(convolution(2, 2, 3, 1, 1)), nn.SiLU())
    assert why_autograd(net) == ""
    same_as_the_general_way(net, event_dim=3)
    net[0].pad = lambda x: 2 * x
    assert why_autograd(net) == "0 (ParametrizedPadConv2d): it overrides forward"
    same_as_the_general_way(net, event_dim=3)
    net[0] = convolution(2, 2, 3, is_symmetric=True)
    assert why_autograd(net) == "0 (PadConv2d): it overrides forward"
    same_as_the_general_way(net, event_dim=3)
