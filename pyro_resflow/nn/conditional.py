"""Networks that are contractions in their input, and depend on a context without constraints."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor, nn

from ..linearization import known_event_shape
from ..rebuilding import Rebuildable
from .activations import Activation, FixedLipSwish, LipSwish
from .lipschitz.infinity_norm import InfinityNormLinear
from .lipschitz.layer import LipschitzLayer
from .lipschitz.together import is_eager
from .networks import Chain, DenseConcatenation, GatedLipschitzMLP, LipschitzMLP, Norms, Shift
from .networks.chain import BoundChain
from .networks.gated import REACH, BoundGate


class ConditionalChain(Rebuildable, nn.Module):
    r"""A network of Lipschitz layers, each shifted by a network of the context.

    :math:`h_{i+1} = \phi(W_i h_i + b_i + s_i(c))`, where an unconstrained network computes the
    shifts :math:`s(c)`. Shifts do not change the bound of the Jacobian with respect to the input.
    A shift of images has one entry for each channel.

    Args:
        chain: any network of :mod:`pyro_resflow.nn`, of vectors or of images. In a
            :class:`GatedLipschitzMLP` the layers of its branch are shifted.
        context_dim: size of the context.
        context_hidden_dims: widths of the hidden layers of the network that computes the shifts.

    Raises:
        ValueError: for a chain without a Lipschitz layer, which could not depend on the context,
            or one that overrides how it is evaluated.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ConditionalChain, LipschitzConvNet
        >>> net = ConditionalChain(LipschitzConvNet((1, 4, 4), [8, 8]), context_dim=5)
        >>> net.bind(torch.randn(7, 5))(torch.randn(7, 1, 4, 4)).shape
        torch.Size([7, 1, 4, 4])
    """

    def __init__(
        self,
        chain: Chain | GatedLipschitzMLP,
        context_dim: int,
        *,
        context_hidden_dims: Sequence[int] = (64,),
    ) -> None:
        if isinstance(chain, Chain) and not chain._is_evaluated_by_stages:
            raise ValueError(
                "chain: expected a chain that is evaluated in stages, got a "
                f"{type(chain).__name__}, which overrides how it is evaluated, and whose layers "
                "would be shifted and evaluated without its own methods. Pass a network of your "
                "own, with a method bind, to ConditionalResidual instead."
            )
        super().__init__()
        self.chain = chain
        self.context_dim = context_dim
        self.event_dim = chain.event_dim
        event_shape = known_event_shape(chain, chain.event_dim)
        if event_shape is not None:
            self.event_shape = event_shape
        self.shift_sizes = [len(layer.weight) for layer in _affine_layers(_layers(chain))]
        if not self.shift_sizes:
            raise ValueError(
                "chain: expected a LipschitzLinear, LipschitzConv2d or InfinityNormLinear, got "
                "none."
            )
        widths = [context_dim, *context_hidden_dims, sum(self.shift_sizes)]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.shifts = nn.Sequential(*layers[:-1])

    def bind(self, context: Tensor) -> Chain | GatedLipschitzMLP:
        """The network at one context per sample: ``context`` has shape ``(N, context_dim)``."""
        chain = Chain(
            _shifted(_layers(self.chain), iter(self._each_shift(context))),
            event_dim=self.event_dim,
        )
        if isinstance(self.chain, GatedLipschitzMLP):
            return self.chain.with_branch(chain)
        return chain

    @property
    def binds_its_chain(self) -> bool:
        """Whether :meth:`bind` is that of this class; a subclass may bind something else."""
        return type(self).bind is ConditionalChain.bind and "bind" not in vars(self)

    @property
    def shifts_affine_maps(self) -> bool:
        """Whether to shift all affine maps of the chain is to shift its layers as :meth:`bind`."""
        chain = _layers(self.chain)
        if not self.binds_its_chain or type(chain).stages is not Chain.stages:
            return False
        if getattr(type(self.chain), "with_branch", WITH_BRANCH) is not WITH_BRANCH:
            return False
        layers = (each for each in chain._modules.values() if isinstance(each, AffineLayer))
        return all(type(layer).stages in ONE_AFFINE_MAP for layer in layers)

    def bound_at(self, context: Tensor) -> Chain | GatedLipschitzMLP | BoundChain | BoundGate:
        """:meth:`bind` for one pass, with the coefficients that a flow has prepared for it."""
        bound = self.chain.bound() if is_eager() and self.shifts_affine_maps else None
        if isinstance(bound, BoundChain | BoundGate):
            shifted = list(_affine_layers(_layers(self.chain)))
            # nested chains have affine maps that are not shifted, dense layers hide those that are
            if list(map(id, bound.affine_layers())) == list(map(id, shifted)):
                return bound.shifted(self._each_shift(context))
        return self.bind(context)

    def _each_shift(self, context: Tensor) -> tuple[Tensor, ...]:
        """The shifts of all layers, ``(N, features)``, or ``(N, channels, 1, 1)`` of images."""
        shifts = self.shifts(context)
        shifts = shifts.reshape(*shifts.shape, *[1] * (self.event_dim - 1))
        return tuple(shifts.split(self.shift_sizes, dim=1))


class ConditionalLipschitzMLP(ConditionalChain):
    r"""A Lipschitz multilayer perceptron in which a network of the context shifts every layer.

    See :class:`ConditionalChain`.

    Args:
        input_dim: D.
        context_dim: size of the context.
        hidden_dims: widths of the hidden layers of g.
        context_hidden_dims: widths of the hidden layers of the network that computes the shifts.
        activation: makes one activation per hidden layer of g.
        norm: see :class:`LipschitzMLP`.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ConditionalLipschitzMLP
        >>> net = ConditionalLipschitzMLP(2, 5).bind(torch.randn(7, 5))
        >>> net(torch.randn(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        context_hidden_dims: Sequence[int] = (64,),
        activation: Callable[[], Activation] = LipSwish,
        norm: Norms = None,
    ) -> None:
        chain = LipschitzMLP(input_dim, hidden_dims, activation=activation, norm=norm)
        super().__init__(chain, context_dim, context_hidden_dims=context_hidden_dims)
        self.input_dim = input_dim


class ConditionalGatedLipschitzMLP(ConditionalChain):
    r"""A gated Lipschitz perceptron whose layers are shifted by a network of the context.

    See :class:`ConditionalChain` and :class:`GatedLipschitzMLP`.

    Args:
        input_dim: D.
        context_dim: size of the context.
        hidden_dims: widths of the hidden layers of g.
        context_hidden_dims: widths of the hidden layers of the network that computes the shifts.
        activation: makes one activation per hidden layer of g.
        coefficient: see :class:`GatedLipschitzMLP`.
        reach: see :class:`GatedLipschitzMLP`.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ConditionalGatedLipschitzMLP
        >>> net = ConditionalGatedLipschitzMLP(2, 5).bind(torch.randn(7, 5))
        >>> net(torch.randn(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        hidden_dims: Sequence[int] = (64,),
        *,
        context_hidden_dims: Sequence[int] = (64,),
        activation: Callable[[], Activation] = FixedLipSwish,
        coefficient: float = 0.98,
        reach: float = REACH,
    ) -> None:
        gated = GatedLipschitzMLP(
            input_dim, hidden_dims, activation=activation, coefficient=coefficient, reach=reach
        )
        super().__init__(gated, context_dim, context_hidden_dims=context_hidden_dims)
        self.input_dim = input_dim


AffineLayer = LipschitzLayer | InfinityNormLinear
"""The layers that a context shifts."""


WITH_BRANCH = GatedLipschitzMLP.with_branch

ONE_AFFINE_MAP = LipschitzLayer.stages, InfinityNormLinear.stages
"""The methods that return an affine map and nothing else; those of a subclass may return more."""


def _layers(network: Chain | GatedLipschitzMLP) -> Chain:
    return network.branch if isinstance(network, GatedLipschitzMLP) else network


def _affine_layers(layers: Iterable[nn.Module]) -> Iterator[AffineLayer]:
    """The layers to shift, in the order in which they are evaluated."""
    for layer in layers:
        if isinstance(layer, AffineLayer):
            yield layer
        elif isinstance(layer, DenseConcatenation):
            yield from _affine_layers(layer.branch)


def _shifted(layers: Iterable[nn.Module], shifts: Iterator[Tensor]) -> Iterator[nn.Module]:
    """The layers, with a shift after each affine layer; they share all parameters."""
    for layer in layers:
        if isinstance(layer, DenseConcatenation):
            yield layer.with_branch(Chain(_shifted(layer.branch, shifts)))
            continue
        yield layer
        if isinstance(layer, AffineLayer):
            yield Shift(next(shifts))
