"""Chains of layers that can be linearized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from functools import partial
from itertools import islice
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...differentiation import saving_hooks
from ...linearization import Linearizable, Linearization
from ...rebuilding import Rebuildable
from ...walk import modules_inside
from ..lipschitz.infinity_norm import InfinityNormLinear
from ..lipschitz.layer import LipschitzLayer
from ..lipschitz.together import is_eager
from ..lipschitz.update import layers_updated
from ..stages import (
    Affine,
    Layer,
    PerceptronTangents,
    Stage,
    StagedNetwork,
    Translate,
    activations_of,
    folded,
    value_and_jacobian_inputs,
)
from .coefficients import coefficients_of
from .norms import check_norms_chain, check_one_norm
from .overriding import evaluated_by_itself, evaluates_as, refuse_ignored_forward
from .prepared import Coefficients, dependencies, keep, kept
from .stacked import Layout, perceptron_layout

PREPARED_ENTRIES = 2**20
"""Largest number of weight entries of a flow whose coefficients are computed together: 4 MiB in
float32. In larger flows, the calls that this saves cost little beside the arithmetic."""


class Chain(Rebuildable, nn.Sequential):
    """Layers one after the other, linearized by the chain rule.

    Args:
        layers: modules with a method ``stages``, see :class:`pyro_resflow.nn.stages.Layer`. The
            chain's own bound also needs their method ``lipschitz_bound``.
        event_dim: event dimensions of the input: 1 for vectors, 3 for images.

    Raises:
        ValueError: for a module without ``stages``, or one that overrides ``forward`` alone.
    """

    def __init__(self, layers: Iterable[nn.Module], *, event_dim: int = 1) -> None:
        layers = list(layers)
        for layer in layers:
            if not callable(getattr(layer, "stages", None)):
                raise ValueError(
                    f"layers: expected layers of pyro_resflow.nn, which have a method stages, got "
                    f"a {type(layer).__name__}. Use LipschitzLinear and LipschitzConv2d for "
                    "linear maps, and the activations of pyro_resflow.nn; pass any other network "
                    "to Residual as a plain module, such as an nn.Sequential."
                )
        refuse_ignored_forward("layers", layers)
        super().__init__(*layers)
        self.event_dim = event_dim

    _is_evaluated_by_stages = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._is_evaluated_by_stages = evaluates_as(cls, Chain)

    def __getitem__(self, index: int | slice) -> nn.Module:  # type: ignore[override]
        layers = list(self)
        if isinstance(index, slice):
            return Chain(layers[index], event_dim=self.event_dim)
        return layers[index]

    def stages(self) -> list[Stage[Any]]:
        """The stages of all layers, with scalings multiplied into neighbouring affine maps."""
        refuse_hooks("layer", self._modules)
        if not torch.compiler.is_compiling():
            refuse_ignored_forward("layers", self._modules.values())
        stages: list[Stage[Any]] = []
        for layer in self._modules.values():
            stages.extend(cast(Layer, layer).stages())
        return folded(stages)

    def bound(self) -> Linearizable:
        """The chain with its stages built, for the evaluations of one solve or one estimate.

        A subclass that overrides how it is evaluated is returned unchanged; one that overrides
        ``forward`` alone is linearized by autograd.

        Raises:
            ValueError: for hooks on the chain or a layer, which would not be called.
        """
        prepared = _PREPARED.get().get(id(self))
        if prepared is not None and not saving_hooks():  # a checkpoint recomputes its part
            return prepared
        return self._bound() if self._is_evaluated_by_stages else evaluated_by_itself(self)

    def _bound(self) -> BoundChain:
        refuse_hooks("net", {"": self})
        return self._built()

    def _built(self) -> BoundChain:
        """The chain with its stages, rebuilt if a layer is replaced, or gets or loses a bias."""
        layers = tuple(self._modules.values())
        biases: list[bool] = []
        can_keep = not torch.compiler.is_compiling()  # a compiler would guard what is kept here
        for layer in layers:
            biases.append(layer is not None and layer._parameters.get("bias") is not None)
            can_keep = can_keep and getattr(
                getattr(type(layer), "stages", None), "is_reusable", False
            )
        known = _BUILT.get(self) if can_keep else None
        if known is not None and known[:2] == (layers, biases):
            refuse_hooks("layer", self._modules)
            return known[2]
        stages = self.stages()
        built = BoundChain(stages, self.event_dim)
        if can_keep:
            _BUILT[self] = layers, biases, built
        return built

    def coefficients(self) -> tuple[Tensor, ...]:
        """The tensors that the value depends on: effective weights, biases, scalars, shifts."""
        return self._built().coefficients()

    def forward(self, x: Tensor) -> Tensor:
        prepared = _PREPARED.get().get(id(self))
        return (self._built() if prepared is None or saving_hooks() else prepared)(x)

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """The chain at x of shape ``(N, *event)`` with given coefficients."""
        return self._bound().evaluate(x, coefficients)

    def linearize(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Linearization:
        """The chain at x of shape ``(N, *event)``, with products with its Jacobian."""
        return self._bound().linearize(x, coefficients)

    def dual(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and J_g(x) v, differentiable: x of ``(N, *event)``, v of ``(S, N, *event)``."""
        linearization = self.linearize(x)
        return linearization.value, linearization.jvp(v)

    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the network's Lipschitz constant, a scalar.

        Raises:
            ValueError: for a layer without ``lipschitz_bound``, for induced norms whose orders
                are not shared by neighbouring layers, and for a mixture with infinity norms.
        """
        check_one_norm(self)
        check_norms_chain([layer.norm for layer in self if isinstance(layer, LipschitzLayer)])
        bound: Tensor | float = 1.0
        for name, layer in self.named_children():
            if not hasattr(layer, "lipschitz_bound"):
                raise ValueError(
                    f"layer {name} ({type(layer).__name__}): its Lipschitz constant is unknown; "
                    "give it a method lipschitz_bound() that returns an upper bound."
                )
            bound = bound * cast(Any, layer).lipschitz_bound()
        return bound if isinstance(bound, Tensor) else torch.tensor(bound)


class BoundChain(StagedNetwork):
    """A chain whose stages have been built, see :meth:`Chain.bound`.

    Each call computes the coefficients anew, unless they are known. Layers and hooks that are
    added to the chain later have no effect.

    Args:
        stages: the stages of the chain.
        event_dim: event dimensions of the input.
        known: the coefficients, if they have been computed already.
    """

    def __init__(
        self,
        stages: Sequence[Stage[Any]],
        event_dim: int,
        known: tuple[Tensor, ...] | None = None,
    ) -> None:
        super().__init__(stages)
        self.event_dim = event_dim
        self.known = known

    def bound(self) -> BoundChain:
        """The chain itself."""
        return self

    def coefficients(self) -> tuple[Tensor, ...]:
        """See :meth:`Chain.coefficients`."""
        return coefficients_of([self.stages])[0] if self.known is None else self.known

    def shifted(self, shifts: Iterable[Tensor]) -> BoundChain:
        """The chain with a constant for each sample added to the output of each affine map.

        Args:
            shifts: the constant of each affine map, see :class:`Shift`.
        """
        remaining, each = iter(self.coefficients()), iter(shifts)
        stages: list[Stage[Any]] = []
        coefficients: list[Tensor] = []
        for stage in self.stages:
            stages.append(stage)
            coefficients.extend(islice(remaining, stage.size))
            if isinstance(stage, Affine):
                translate = Translate(partial(next, each), stage.after)
                stages.append(translate)
                coefficients.extend(translate.coefficients())
        return BoundChain(stages, self.event_dim, tuple(coefficients))

    # see `stacked.Stackable`; the chain is a perceptron where it has a layout

    def layout(self) -> Layout | None:
        """See :func:`.stacked.perceptron_layout`."""
        return perceptron_layout(self)

    def input_features(self) -> int:
        """The number of inputs of the first affine map."""
        return self._weights()[0].shape[1]

    def hidden_features(self) -> int:
        """The number of outputs of all affine maps but the last."""
        return sum(map(len, self._weights()[:-1]))

    def affine_layers(self) -> list[object]:
        """The layers of the affine maps."""
        layers: list[object] = []
        for stage in self.stages:
            if isinstance(stage, Affine):
                layers.append(stage.layer)
        return layers

    def _weights(self) -> list[Tensor]:
        return [cast(LipschitzLayer, layer).weight for layer in self.affine_layers()]

    def value_and_jacobian_inputs(
        self, x: Tensor, coefficients: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The value, and the weights and the inputs of the activations."""
        return value_and_jacobian_inputs(self.stages, x, coefficients)

    def jacobian_coefficients(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The inputs themselves."""
        return tuple(inputs)

    def tangents(self, coefficients: Sequence[Tensor]) -> PerceptronTangents:
        """Products with the Jacobians."""
        activations = activations_of(self.stages)
        number = len(coefficients) - len(activations)
        return PerceptronTangents(coefficients[:number], activations, coefficients[number:])


_BUILT: MutableMapping[Chain, tuple[tuple[nn.Module | None, ...], list[bool], BoundChain]] = (
    WeakKeyDictionary()
)
"""For each chain that has been built: its layers, which of them have a bias, and the result."""

_PREPARED: ContextVar[Mapping[int, BoundChain]] = ContextVar("prepared", default={})  # noqa: B039
"""The chains that an enclosing pass has prepared, by id."""


@contextmanager
def prepared_together(module: nn.Module) -> Iterator[None]:
    """A context for one pass, in which norms and coefficients of all chains are computed together.

    Args:
        module: any module. Its chains are those that submodules hold as ``net``, those that a
            ``net`` holds as ``branch``, and those that a conditional network shifts.
    """
    modules = modules_inside(module)
    with layers_updated(modules):
        token = _PREPARED.set(_prepared(modules) if is_eager() else {})
        try:
            yield
        finally:
            _PREPARED.reset(token)


def _prepared(modules: Sequence[nn.Module]) -> dict[int, BoundChain]:
    """Chains by id, with their coefficients; none if there is only one, or if they are large."""
    chains: dict[int, BoundChain] = {}
    layers: list[nn.Module] = []
    entries = 0
    for each in modules:
        if isinstance(each, LipschitzLayer | InfinityNormLinear):
            entries += each.weight.numel()
        net = each._modules.get("net")
        chain = net if net is None or isinstance(net, Chain) else _chain_inside(net)
        if isinstance(chain, Chain) and chain._is_evaluated_by_stages and id(chain) not in chains:
            chains[id(chain)] = chain._bound()
            layers.extend(chain._modules.values())
    if len(chains) < 2 or entries > PREPARED_ENTRIES:
        return {}
    known = _coefficients(modules[0], layers, chains)
    for key, bound in chains.items():
        chains[key] = copy(bound)
        chains[key].known = known[key]
    return chains


def _chain_inside(net: nn.Module) -> nn.Module | None:
    """The chain that a block's network holds and evaluates, if any."""
    if getattr(net, "shifts_affine_maps", False):
        inner = net._modules["chain"]
        return inner if inner is None or isinstance(inner, Chain) else _chain_inside(inner)
    return net._modules.get("branch")


def _coefficients(
    module: nn.Module, layers: Sequence[nn.Module], chains: Mapping[int, BoundChain]
) -> Coefficients:
    """The coefficients of chains by id, kept from the last pass if that had no gradients either.

    Args:
        module: the module that the chains are inside.
        layers: the layers of the chains.
        chains: the chains, by id.
    """
    needed = dependencies(layers)
    known = kept(module, needed) if needed is not None else None
    if known is not None and known.keys() == chains.keys():
        return known
    found = coefficients_of([each.stages for each in chains.values()])
    known = dict(zip(chains, found, strict=True))
    if needed is not None:
        keep(module, needed, known)
    return known


def refuse_hooks(kind: str, modules: Mapping[str, nn.Module | None]) -> None:
    """Raise if a module has hooks: a chain evaluates it by its stages, and calls no hooks.

    ``torch.nn.utils.prune`` and the older ``weight_norm`` and ``spectral_norm`` also use hooks, to
    replace a weight.

    Args:
        kind: a word for the modules in the error message.
        modules: the modules, by name.

    Raises:
        ValueError: naming the module.
    """
    for name, module in modules.items():
        if module is not None and (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        ):
            raise ValueError(
                f"{kind}{name and ' '}{name} ({type(module).__name__}): expected no hooks, got "
                "some. They would not be called, because networks of pyro_resflow.nn are "
                "evaluated in stages; remove them. torch.nn.utils.prune.remove makes pruning "
                "permanent, torch.nn.utils.parametrizations.weight_norm replaces "
                "torch.nn.utils.weight_norm. To see intermediate values, wrap the network in a "
                "module and register the hook on that."
            )


class Shift(Rebuildable, nn.Module):
    """Add a constant to each sample; the Jacobian is the identity.

    Args:
        shift: shape ``(N, features)``, or ``(N, channels, 1, 1)`` for images.
    """

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift

    def lipschitz_bound(self) -> float:
        """The Lipschitz constant of a translation."""
        return 1.0

    def stages(self) -> list[Stage[Any]]:
        """One translation."""
        return [Translate(lambda: self.shift)]
