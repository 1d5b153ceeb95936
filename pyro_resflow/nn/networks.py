r"""Networks with a known Lipschitz constant: chains of layers that can be linearized.

Every layer breaks into stages that know their derivatives, and :class:`Chain` composes them. A
network of L linear layers, each held to the coefficient c, and activations of slope at most 1 has
a Lipschitz constant of at most :math:`c^L`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..rebuilding import Rebuildable
from .activations import Activation, CLipSwish, LipSwish
from .lipschitz.base import LipschitzLayer
from .lipschitz.linear import LipschitzConv2d, LipschitzLinear
from .lipschitz.norms import InducedNorm, OperatorNorm, SpectralNorm
from .stages.base import Layer, Stage, Translate, folded
from .stages.linearized import Beside, LinearizedStages, evaluate

Norms = OperatorNorm | Sequence[OperatorNorm] | None


class Chain(Rebuildable, nn.Sequential):
    """Layers one after the other, linearized by the chain rule.

    Args:
        layers: modules with a method ``stages``, see :class:`pyro_resflow.nn.stages.Layer`; with
            one more, ``lipschitz_bound``, the chain's own bound can be certified.
        event_dim: event dimensions of the input: 1 for vectors, 3 for images.

    Raises:
        ValueError: for a module without ``stages``.
    """

    def __init__(self, layers: Iterable[nn.Module], *, event_dim: int = 1) -> None:
        layers = list(layers)
        for layer in layers:
            if not callable(getattr(layer, "stages", None)):
                raise ValueError(
                    f"layers: expected layers of pyro_resflow.nn, which have a method stages, got "
                    f"a {type(layer).__name__}. Take LipschitzLinear and LipschitzConv2d for "
                    "linear maps and the activations of pyro_resflow.nn; any other network is "
                    "given to Residual as a plain module, such as an nn.Sequential."
                )
        super().__init__(*layers)
        self.event_dim = event_dim

    def __getitem__(self, index: int | slice) -> nn.Module:  # type: ignore[override]
        layers = list(self)
        if isinstance(index, slice):
            return Chain(layers[index], event_dim=self.event_dim)
        return layers[index]

    def stages(self) -> list[Stage]:
        """The stages of all layers, scalings multiplied into the affine maps beside them."""
        for name, layer in self.named_children():
            refuse_hooks(f"layer {name} ({type(layer).__name__})", layer)
        return folded(
            stage for layer in cast(Iterator[Layer], iter(self)) for stage in layer.stages()
        )

    def coefficients(self) -> tuple[Tensor, ...]:
        """The tensors that the value depends on: effective weights, biases, scalars, shifts."""
        return tuple(c for stage in self.stages() for c in stage.coefficients())

    def forward(self, x: Tensor) -> Tensor:
        return evaluate(self.stages(), x, self.coefficients())

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """The chain at x of shape ``(N, *event)`` with given coefficients."""
        refuse_hooks(f"net ({type(self).__name__})", self)
        return evaluate(self.stages(), x, coefficients)

    def linearize(
        self, x: Tensor, coefficients: Sequence[Tensor] | None = None
    ) -> LinearizedStages:
        """The chain at x of shape ``(N, *event)``, with products with its Jacobian."""
        refuse_hooks(f"net ({type(self).__name__})", self)
        return LinearizedStages(
            self.stages(), x, self.coefficients() if coefficients is None else coefficients
        )

    def dual(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and J_g(x) v, differentiable: x of ``(N, *event)``, v of ``(S, N, *event)``."""
        linearization = self.linearize(x)
        return linearization.value, linearization.jvp(v)

    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the network's Lipschitz constant, a scalar.

        Raises:
            ValueError: for a layer of which nothing is known, and for induced norms of layers that
                do not chain to a bound.
        """
        check_norms_chain([layer.norm for layer in self if isinstance(layer, LipschitzLayer)])
        bound: Tensor | float = 1.0
        for name, layer in self.named_children():
            if not hasattr(layer, "lipschitz_bound"):
                raise ValueError(
                    f"layer {name} ({type(layer).__name__}): nothing is known of its Lipschitz "
                    "constant; give it a method lipschitz_bound() that returns an upper bound."
                )
            bound = bound * cast(Any, layer).lipschitz_bound()
        return bound if isinstance(bound, Tensor) else torch.tensor(bound)


def refuse_hooks(name: str, module: nn.Module) -> None:
    """Raise if a module has hooks, of which a chain that evaluates it by its stages calls none.

    Hooks are also what ``torch.nn.utils.prune`` and the older ``weight_norm`` and
    ``spectral_norm`` put in a weight's place by.

    Raises:
        ValueError: naming the module.
    """
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        raise ValueError(
            f"{name}: its hooks would not be called, for networks of pyro_resflow.nn are "
            "evaluated in stages. Remove them. Pruning is made permanent by "
            "torch.nn.utils.prune.remove, torch.nn.utils.weight_norm has its successor in "
            "torch.nn.utils.parametrizations.weight_norm; to look at what passes, put the hook on "
            "a module of your own around the network."
        )


class Shift(Rebuildable, nn.Module):
    """Add a constant to each sample, which leaves the Jacobian alone.

    Args:
        shift: shape ``(N, features)``.
    """

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift

    def lipschitz_bound(self) -> float:
        """The Lipschitz constant of a translation."""
        return 1.0

    def stages(self) -> list[Stage]:
        """One translation."""
        return [Translate(lambda: self.shift)]


class LipschitzMLP(Chain):
    r"""Multilayer perceptron :math:`g: R^D \to R^D` with Lipschitz constant at most :math:`c^L`.

    Args:
        input_dim: D.
        hidden_dims: widths of the hidden layers; L is one more than their number.
        activation: makes one activation per hidden layer.
        norm: the norm that each linear layer is held to, or one norm per layer; default
            ``SpectralNorm(0.98)``.
        preactivation: start with an activation, as the convolutional blocks of the paper do.

    Shapes: ``(N, D)`` to ``(N, D)``.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> net = LipschitzMLP(2, [32, 32])
        >>> net(torch.randn(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        activation: Callable[[], Activation] = LipSwish,
        norm: Norms = None,
        preactivation: bool = False,
    ) -> None:
        widths = [input_dim, *hidden_dims, input_dim]
        norms = norm_per_layer(norm, len(widths) - 1, concatenates=activation().expansion > 1)
        layers: list[nn.Module] = []
        expansion = 1
        for i, layer_norm in enumerate(norms):
            if i > 0 or preactivation:
                phi = activation()
                layers.append(phi)
                expansion = phi.expansion
            layers.append(LipschitzLinear(widths[i] * expansion, widths[i + 1], layer_norm))
        super().__init__(layers, event_dim=1)
        self.input_dim = input_dim


class LipschitzConvNet(Chain):
    r"""Convolutional network on images with Lipschitz constant at most :math:`c^L`.

    The default kernel sizes 3, 1, 3 are the residual flow's block.

    Args:
        event_shape: channels, height and width of the images.
        hidden_channels: channels of the hidden layers.
        kernel_sizes: one odd size per convolution, one more than hidden layers.
        activation: makes one activation per hidden layer, and one more in front if
            ``preactivation``.
        norm: the norm that each convolution is held to, or one norm per convolution; default
            ``SpectralNorm(0.98)``.
        preactivation: start with an activation.

    Shapes: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Raises:
        ValueError: if the number of kernel sizes does not fit the hidden layers.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019, appendix E.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_channels: Sequence[int] = (64, 64),
        *,
        kernel_sizes: Sequence[int] = (3, 1, 3),
        activation: Callable[[], Activation] = LipSwish,
        norm: Norms = None,
        preactivation: bool = True,
    ) -> None:
        channels, height, width = checked_image_shape(event_shape)
        if len(kernel_sizes) != len(hidden_channels) + 1:
            raise ValueError(
                f"kernel_sizes: {len(hidden_channels)} hidden layers need "
                f"{len(hidden_channels) + 1} convolutions, got {len(kernel_sizes)} sizes."
            )
        widths = [channels, *hidden_channels, channels]
        norms = norm_per_layer(norm, len(kernel_sizes), concatenates=activation().expansion > 1)
        layers: list[nn.Module] = []
        expansion = 1
        for i, (kernel_size, layer_norm) in enumerate(zip(kernel_sizes, norms, strict=True)):
            if i > 0 or preactivation:
                phi = activation()
                if getattr(phi, "feature_dim", -3) != -3:
                    raise ValueError(
                        f"activation: {type(phi).__name__} concatenates along dimension "
                        f"{phi.feature_dim}, images have their channels in -3; pass "
                        f"partial({type(phi).__name__}, -3)."
                    )
                layers.append(phi)
                expansion = phi.expansion
            layers.append(
                LipschitzConv2d(
                    widths[i] * expansion, widths[i + 1], kernel_size, (height, width), layer_norm
                )
            )
        super().__init__(layers, event_dim=3)
        self.event_shape = torch.Size(event_shape)


class DenseConcatenation(Rebuildable, nn.Module):
    r"""Input and new features side by side, :math:`[\eta_1 x, \eta_2 h(x)]`, at :math:`|\eta|=1`.

    :math:`\eta = (\hat\eta_1, \hat\eta_2)/|\hat\eta|` with
    :math:`\hat\eta = \mathrm{softplus}(\cdot) + 0.1` learned, so that the pair is a contraction
    whenever h is one. (In the authors' code :math:`|\eta| = 0.98`, which makes a network of
    several smaller than it has to be.)

    Args:
        branch: the layers h.
        feature_dim: -1 for vectors, -3 for images.

    Reference:
        Perugachi-Diaz, Tomczak and Bhulai, Invertible DenseNets with Concatenated LipSwish, 2021,
        section 3.2.
    """

    def __init__(self, branch: Chain, *, feature_dim: int = -1) -> None:
        super().__init__()
        self.branch = branch
        self.feature_dim = feature_dim
        self.raw_weights = nn.Parameter(torch.zeros(2))

    def weights(self) -> Tensor:
        """The pair (eta_1, eta_2), of length 1."""
        raw = nn.functional.softplus(self.raw_weights) + 0.1
        return raw / torch.linalg.vector_norm(raw)

    def forward(self, x: Tensor) -> Tensor:
        eta = self.weights()
        return torch.cat([eta[0] * x, eta[1] * self.branch(x)], dim=self.feature_dim)

    def stages(self) -> list[Stage]:
        """The scaled input beside the scaled features."""
        refuse_hooks(f"branch ({type(self.branch).__name__})", self.branch)
        return [Beside(self.weights, self.branch.stages(), self.feature_dim)]

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the Lipschitz constant, a scalar."""
        eta = self.weights()
        return (eta[0] ** 2 + (eta[1] * self.branch.lipschitz_bound()) ** 2).sqrt()


class LipschitzDenseNet(Chain):
    r"""Densely connected network whose last linear layer brings it to a contraction.

    ``depth`` times [linear layer to ``growth`` features, concatenated activation, concatenation
    with the input], then a linear layer back to the input's size (a 1x1 convolution for images).

    Args:
        event_shape: ``(D,)`` for vectors, ``(C, H, W)`` for images, or the integer D.
        depth: number of dense layers.
        growth: features that each dense layer adds, activation included.
        kernel_size: odd side of the kernels, for images.
        activation: makes one activation per dense layer from the feature dimension.
        norm: the norm that each linear layer is held to, or one per layer; default
            ``SpectralNorm(0.98)``.
        stem: features that a linear layer in front brings the input to; default: no such layer.

    Raises:
        ValueError: for a growth that the activation's expansion does not divide, or an event
            shape that is neither a vector's nor an image's.

    Reference:
        Perugachi-Diaz, Tomczak and Bhulai, Invertible DenseNets with Concatenated LipSwish, 2021.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        depth: int = 3,
        growth: int = 64,
        kernel_size: int = 3,
        activation: Callable[[int], Activation] = CLipSwish,
        norm: Norms = None,
        stem: int | None = None,
    ) -> None:
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        is_image = len(shape) != 1
        if is_image:
            checked_image_shape(shape)
        feature_dim = -3 if is_image else -1
        norms = norm_per_layer(norm, depth + 1 + (stem is not None), concatenates=True)

        def linear(inputs: int, outputs: int, size: int, layer_norm: OperatorNorm) -> nn.Module:
            if is_image:
                return LipschitzConv2d(inputs, outputs, size, (shape[1], shape[2]), layer_norm)
            return LipschitzLinear(inputs, outputs, layer_norm)

        layers: list[nn.Module] = []
        features = shape[0]
        if stem is not None:
            layers.append(linear(features, stem, kernel_size, norms[0]))
            features = stem
        for layer_norm in norms[-1 - depth : -1]:
            phi = activation(feature_dim)
            if growth % phi.expansion:
                raise ValueError(
                    f"growth: expected a multiple of {phi.expansion}, the activation's "
                    f"expansion, got {growth}."
                )
            first = linear(features, growth // phi.expansion, kernel_size, layer_norm)
            layers.append(DenseConcatenation(Chain([first, phi]), feature_dim=feature_dim))
            features += growth
        layers.append(linear(features, shape[0], 1, norms[-1]))
        super().__init__(layers, event_dim=len(shape))
        self.event_shape = torch.Size(shape)


def norm_per_layer(norm: Norms, layers: int, *, concatenates: bool = False) -> list[OperatorNorm]:
    """One norm for each linear layer of a network.

    Args:
        norm: one norm for all layers, one for each, or ``None`` for ``SpectralNorm()``.
        layers: number of linear layers.
        concatenates: whether features are concatenated in between.

    Raises:
        ValueError: if a sequence of norms has another length than the network, or if induced
            norms do not chain to a bound of the whole network.
    """
    if norm is None or isinstance(norm, OperatorNorm):
        norms = [norm if norm is not None else SpectralNorm()] * layers
    else:
        norms = list(norm)
    if len(norms) != layers:
        raise ValueError(f"norm: expected one norm for each of {layers} layers, got {len(norms)}.")
    if concatenates and any(isinstance(each, InducedNorm) for each in norms):
        raise ValueError(
            "norm: the bound of a concatenation holds for the Euclidean norm alone; use "
            "SpectralNorm here, or an activation that does not concatenate."
        )
    check_norms_chain(norms)
    return norms


def check_norms_chain(norms: Sequence[OperatorNorm]) -> None:
    """Raise unless the norms of linear layers multiply to a bound of all of them in a row.

    Raises:
        ValueError: if an induced norm does not end in the order in which the next one begins, or
            the last one in that of the first.
    """
    if not any(isinstance(each, InducedNorm) for each in norms):
        return
    for first, second in zip(norms, [*norms[1:], norms[0]], strict=True):
        if not (
            isinstance(first, InducedNorm)
            and isinstance(second, InducedNorm)
            and first.codomain_logit is second.domain_logit
        ):
            raise ValueError(
                "norm: the orders of induced norms have to be shared from layer to layer, the "
                f"last one's with the first; make them with InducedNorm.chain({len(norms)})."
            )


def checked_image_shape(event_shape: Sequence[int]) -> tuple[int, int, int]:
    """``event_shape`` as (channels, height, width).

    Raises:
        ValueError: unless it is three positive integers.
    """
    if len(event_shape) != 3 or any(size < 1 for size in event_shape):
        raise ValueError(
            f"event_shape: expected (channels, height, width), got {tuple(event_shape)}."
        )
    channels, height, width = event_shape
    return channels, height, width
