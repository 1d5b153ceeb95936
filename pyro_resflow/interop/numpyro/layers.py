"""Networks in JAX: callable named tuples of weights, which are pytrees.

Every layer takes ``(*batch, features)`` with any batch dimensions. Images have their channels in
the last dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import singledispatch
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from ... import nn as lipschitz
from ...extras import extra

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array


class Layer(Protocol):
    """A function of an array that is a pytree of its weights."""

    def __call__(self, x: Array, /) -> Array:
        """Evaluate the layer at x, shape ``(*batch, features)``."""


class AffineLayer(Layer, Protocol):
    """A layer that multiplies its input by a weight: matrix or kernel."""

    @property
    def out_features(self) -> int:
        """The size of the output's last dimension."""


class Linear(NamedTuple):
    """W x + b, with W of shape ``(out, in)``."""

    weight: Array
    bias: Array | None

    def __call__(self, x: Array) -> Array:
        # a TPU's default precision is too low to solve for an inverse
        y = jnp.matmul(x, self.weight.T, precision="highest")
        return y if self.bias is None else y + self.bias

    @property
    def out_features(self) -> int:
        """The size of the output."""
        return self.weight.shape[0]


class Shift(NamedTuple):
    """x + s, with s of shape ``(*batch, features)``."""

    shift: Array

    def __call__(self, x: Array) -> Array:
        return x + self.shift


class LipSwish(NamedTuple):
    """kappa silu(beta x) with two scalars."""

    beta: Array
    kappa: Array

    def __call__(self, x: Array) -> Array:
        return self.kappa * jax.nn.silu(self.beta * x)


class SiLU(NamedTuple):
    """x sigmoid(x)."""

    def __call__(self, x: Array) -> Array:
        return jax.nn.silu(x)


class ELU(NamedTuple):
    """x for x > 0, else exp(x) - 1."""

    def __call__(self, x: Array) -> Array:
        return jax.nn.elu(x)


class Tanh(NamedTuple):
    """tanh(x)."""

    def __call__(self, x: Array) -> Array:
        return jnp.tanh(x)


class Softplus(NamedTuple):
    """log(1 + exp(x)), and x above 20, as in torch."""

    def __call__(self, x: Array) -> Array:
        return jnp.where(x > 20, x, jax.nn.softplus(x))


class Pila(NamedTuple):
    """x for x > 0, else (k^2 x^3 / 2 - k x^2 + x) exp(k x)."""

    k: Array

    def __call__(self, x: Array) -> Array:
        n = jnp.where(x > 0, 0, x)
        kn = self.k * n
        return jnp.where(x > 0, x, n * (1 - kn + kn * kn / 2) * jnp.exp(kn))


class Gated(NamedTuple):
    """a r tanh(x / r) tanh(n(x) / r) + b m(x), with a branch that returns n and m."""

    branch: Layer
    reach: Array
    amplitude: Array
    share: Array

    def __call__(self, x: Array) -> Array:
        n, m = jnp.split(self.branch(x), 2, axis=-1)
        gate = jnp.tanh(x / self.reach) * jnp.tanh(n / self.reach)
        return self.amplitude * self.reach * gate + self.share * m

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The batch dimensions of the context; empty without a context."""
        return cast(Chain, self.branch).batch_shape


class Concatenated(NamedTuple):
    """[phi(x - s), phi(-x - s)] / c."""

    activation: Layer
    bound: Array
    shift: Array

    def __call__(self, x: Array) -> Array:
        return self.activation(jnp.concatenate([x, -x], axis=-1) - self.shift) / self.bound


class DenseConcatenation(NamedTuple):
    """[eta_1 x, eta_2 h(x)], with eta of shape ``(2,)``."""

    branch: Layer
    eta: Array

    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([self.eta[0] * x, self.eta[1] * self.branch(x)], axis=-1)


class Chain(NamedTuple):
    """A sequence of layers."""

    layers: tuple[Layer, ...]

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The batch dimensions of the context; empty without a context."""
        return jnp.broadcast_shapes(*(shift.shape[:-1] for shift in _shifts(self)))


class Negative(NamedTuple):
    """-g(x)."""

    net: Layer

    def __call__(self, x: Array) -> Array:
        return -self.net(x)


class ConditionalNetwork(NamedTuple):
    """A network of vectors whose affine layers are shifted by a network of the context."""

    chain: Chain | Gated
    shifts: Layer

    def bind(self, context: Array) -> Chain | Gated:
        """The network given a context of shape ``(*batch, context_dim)``."""
        return shifted(self.chain, self.shifts(context))


def shifted(chain: Chain | Gated, shifts: Array) -> Chain | Gated:
    """The network with a shift after each affine layer, also inside dense concatenations.

    Args:
        chain: the network.
        shifts: the shifts of all layers, concatenated along the last dimension.
    """
    if isinstance(chain, Gated):
        return chain._replace(branch=shifted(cast(Chain, chain.branch), shifts))
    sizes = [layer.out_features for layer in _affine_layers(chain)]
    ends = list(itertools.accumulate(sizes))[:-1]
    return _with_shifts(chain, iter(jnp.split(shifts, ends, axis=-1)))


def _affine_layers(chain: Layer) -> Iterator[AffineLayer]:
    for layer in getattr(chain, "layers", ()):
        if isinstance(layer, DenseConcatenation):
            yield from _affine_layers(layer.branch)
        elif hasattr(layer, "out_features"):
            yield layer


def _with_shifts(chain: Layer, shifts: Iterator[Array]) -> Chain:
    layers: list[Layer] = []
    for layer in getattr(chain, "layers", ()):
        if isinstance(layer, DenseConcatenation):
            layer = layer._replace(branch=_with_shifts(layer.branch, shifts))
        layers.append(layer)
        if hasattr(layer, "out_features"):
            layers.append(Shift(next(shifts)))
    return Chain(tuple(layers))


def _shifts(chain: Layer) -> Iterator[Array]:
    for layer in getattr(chain, "layers", ()):
        if isinstance(layer, Shift):
            yield layer.shift
        elif isinstance(layer, DenseConcatenation):
            yield from _shifts(layer.branch)


def array(value: Tensor | float) -> Array:
    """Copy a value to a JAX array, in 64 bits if the value has them and ``jax_enable_x64`` is on.

    A Python number becomes a weakly typed array, which takes the dtype of the other operand.
    """
    return jnp.array(value.numpy(force=True) if isinstance(value, Tensor) else value)


@singledispatch
def to_jax(module: Any) -> Any:
    """Translate a network or a layer to a function of JAX arrays that is a pytree.

    Networks of images take and return ``(*batch, H, W, C)``, with the channels in the last
    dimension. Lipschitz layers get their current effective weights, W / max(1, sigma/c).

    ``to_jax.register(MyModule, translate)`` adds a translation of your own module. The function
    ``translate`` returns a pytree with ``__call__``, for instance a named tuple of weights.

    Args:
        module: a network of :mod:`pyro_resflow.nn`, or an ``nn.Sequential`` of linear layers,
            convolutions that keep the image size, and activations.

    Returns:
        A :class:`Layer`; for a conditional network a :class:`ConditionalNetwork`.

    Raises:
        ValueError: for a module without a translation.

    Example:
        >>> import jax, torch
        >>> from pyro_resflow.interop.numpyro import to_jax
        >>> net = to_jax(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()))
        >>> net(jax.numpy.ones((7, 2))).shape
        (7, 3)
    """
    raise ValueError(
        "module: expected a network of pyro_resflow.nn, or nn.Sequential, nn.Linear, nn.Conv2d, "
        "nn.ReLU, nn.SiLU, nn.ELU, nn.Tanh or nn.Softplus, got "
        f"{type(module).__name__}, which has no translation to JAX; add one with "
        "to_jax.register(type, function)."
    )


@to_jax.register
@torch.no_grad()
def _linear(module: lipschitz.LipschitzLinear) -> Linear:
    bias = array(module.bias) if module.bias is not None else None
    return Linear(array(module.effective_weight()), bias)


@to_jax.register
def _plain_linear(module: nn.Linear) -> Linear:
    bias = array(module.bias) if module.bias is not None else None
    return Linear(array(module.weight), bias)


@to_jax.register
def _shift(module: lipschitz.Shift) -> Shift:
    return Shift(array(module.shift))


@to_jax.register
@torch.no_grad()
def _lip_swish(module: lipschitz.LipSwish) -> LipSwish:
    return LipSwish(array(module.input_gain()), array(module.output_gain()))


@to_jax.register
def _fixed_lip_swish(module: lipschitz.FixedLipSwish) -> LipSwish:
    return LipSwish(jnp.asarray(module.input_gain()), jnp.asarray(module.output_gain()))


@to_jax.register(nn.SiLU)
def _silu(module: nn.Module) -> SiLU:
    return SiLU()


@to_jax.register(lipschitz.ELU)
@to_jax.register(nn.ELU)
def _elu(module: nn.Module) -> ELU:
    _check_options(module, alpha=1.0)
    return ELU()


@to_jax.register(lipschitz.Tanh)
@to_jax.register(nn.Tanh)
def _tanh(module: nn.Module) -> Tanh:
    return Tanh()


@to_jax.register(lipschitz.Softplus)
@to_jax.register(nn.Softplus)
def _softplus(module: nn.Module) -> Softplus:
    _check_options(module, beta=1.0, threshold=20.0)
    return Softplus()


@to_jax.register
def _pila(module: lipschitz.Pila) -> Pila:
    return Pila(array(module.k))


@to_jax.register
def _concatenated(module: lipschitz.Concatenated) -> Concatenated:
    return Concatenated(to_jax(module.activation), array(module.bound), array(module.shift))


@to_jax.register
@torch.no_grad()
def _dense_concatenation(module: lipschitz.DenseConcatenation) -> DenseConcatenation:
    return DenseConcatenation(to_jax(module.branch), array(module.weights()))


@to_jax.register
@torch.no_grad()
def _infinity_norm_linear(module: lipschitz.InfinityNormLinear) -> Linear:
    bias = None if module.bias is None else array(module.bias)
    return Linear(array(module.effective_weight()), bias)


@to_jax.register
@torch.no_grad()
def _gated(module: lipschitz.GatedLipschitzMLP) -> Gated:
    return Gated(
        to_jax(module.branch), jnp.asarray(module.reach), *map(array, module.gate_coefficients())
    )


@to_jax.register
def _sequential(module: nn.Sequential) -> Chain:
    return Chain(tuple(to_jax(layer) for layer in module))


@to_jax.register
def _conditional(module: lipschitz.ConditionalChain) -> ConditionalNetwork:
    return ConditionalNetwork(to_jax(module.chain), to_jax(module.shifts))


def _check_options(module: nn.Module, **expected: float) -> None:
    for name, value in expected.items():
        if getattr(module, name, value) != value:
            raise ValueError(
                f"module: expected {name}={value}, got {module}; add your own translation with "
                "to_jax.register(type, function)."
            )
