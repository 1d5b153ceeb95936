"""The couplings' conditioners in JAX.

They compute a coupling's parameters from the kept half, optionally given feature maps. Images have
their channels in the last dimension, see :mod:`.convolutions`.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Protocol

from torch import nn

from ... import transforms
from ...extras import extra
from ...nn import conditioners
from ...nn.conditioners import attention, convolutional, gated, residual
from .convolutions import Affine, convolution
from .halves import Halves
from .layers import Chain, Layer, array, to_jax

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array


class Conditioner(Protocol):
    """A network of the kept half and an optional context."""

    def __call__(self, a: Array, context: Array | None = None, /) -> Array:
        """The parameters ``(*batch, *event, P * C)``."""


def concat_elu(x: Array) -> Array:
    """ELU of x and of -x, concatenated along the channels."""
    return jax.nn.elu(jnp.concatenate([x, -x], axis=-1))


def gate(x: Array) -> Array:
    """The first half of the channels times the sigmoid of the second."""
    a, b = jnp.split(x, 2, axis=-1)
    return a * jax.nn.sigmoid(b)


class GatedConv(NamedTuple):
    """x plus the gated output of two convolutions, each applied to a concatenated ELU."""

    first: Layer
    context: Layer | None
    second: Layer

    def __call__(self, x: Array, context: Array | None = None) -> Array:
        hidden = self.first(concat_elu(x))
        if self.context is not None and context is not None:
            hidden = hidden + self.context(concat_elu(context))
        return x + gate(self.second(concat_elu(hidden)))


class SelfAttention(NamedTuple):
    """x plus the gated output of multi-head self-attention over the pixels.

    Attributes:
        project: weights of queries, keys and values, shape ``(3, heads, width, channels)``.
        bias: their biases, shape ``(3, heads, 1, width)``.
        gate: the last layer, whose output is gated.
    """

    project: Array
    bias: Array
    gate: Layer

    def __call__(self, x: Array, positions: Array) -> Array:
        pixels = (x + positions).reshape(*x.shape[:-3], -1, x.shape[-1])
        heads = jnp.einsum("...pc,khdc->...khpd", pixels, self.project, precision="highest")
        query, key, value = jnp.moveaxis(heads + self.bias, -4, 0)
        scores = jnp.einsum("...pd,...qd->...pq", query, key, precision="highest")
        weights = jax.nn.softmax(scores / jnp.sqrt(query.shape[-1]).astype(x.dtype), axis=-1)
        attended = jnp.einsum("...hpq,...hqd->...phd", weights, value, precision="highest")
        return x + gate(self.gate(attended.reshape(x.shape)))


class Maxout(NamedTuple):
    """x plus the gated maximum of three linear functions of each pixel."""

    project: Layer
    gate: Layer

    def __call__(self, x: Array, positions: Array) -> Array:
        pieces = jnp.stack(jnp.split(self.project(x + positions), 3, axis=-1))
        return x + gate(self.gate(pieces.max(0)))


class GatedBlock(NamedTuple):
    """A gated convolution and an optional layer that mixes pixels, each followed by its norm."""

    conv: GatedConv
    conv_norm: Layer
    mixing: SelfAttention | Maxout | None
    mixing_norm: Layer

    def __call__(self, x: Array, context: Array | None, positions: Array) -> Array:
        x = self.conv_norm(self.conv(x, context))
        return x if self.mixing is None else self.mixing_norm(self.mixing(x, positions))


class GatedStack(NamedTuple):
    """A convolution, then blocks that share a position embedding of shape ``(H, W, C)``."""

    first: Layer
    positions: Array
    blocks: tuple[GatedBlock, ...]

    def __call__(self, x: Array, context: Array | None = None) -> Array:
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden, context, self.positions)
        return hidden


class GatedNet(NamedTuple):
    """Flow++'s conditioner: a gated stack and a last convolution."""

    features: GatedStack
    last: Layer

    def __call__(self, a: Array, context: Array | None = None) -> Array:
        return self.last(self.features(a, context))


class ActivatedGatedNet(NamedTuple):
    """Flow++'s conditioner with a concatenated ELU before the last convolution."""

    features: GatedStack
    last: Layer

    def __call__(self, a: Array, context: Array | None = None) -> Array:
        return self.last(concat_elu(self.features(a, context)))


class ContextJoined(NamedTuple):
    """A network whose context is concatenated to the input's channels."""

    net: Layer

    def __call__(self, a: Array, context: Array | None = None) -> Array:
        return self.net(a if context is None else jnp.concatenate([a, context], axis=-1))


class ResidualBlock(NamedTuple):
    """x + h(x)."""

    branch: Layer

    def __call__(self, x: Array) -> Array:
        return x + self.branch(x)


class ResidualNet(NamedTuple):
    """Real NVP's conditioner, with skip connections from all states to the output."""

    input_norm: Affine
    first: Layer
    blocks: tuple[ResidualBlock, ...]
    skips: tuple[Layer, ...]
    last: Layer

    def __call__(self, a: Array, context: Array | None = None) -> Array:
        normalized = 2 * self.input_norm(a)
        signs = [normalized, -normalized, *([] if context is None else [context])]
        state = self.first(jax.nn.relu(jnp.concatenate(signs, axis=-1)))
        total = self.skips[0](state)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            state = block(state)
            total = total + skip(state)
        return self.last(total)


class OnFullImage:
    """A conditioner that sees the kept pixels at their positions in the image.

    Args:
        halves: the kept and the changed pixels.
        net: the network of the whole image. Its first context channel marks the kept pixels.
    """

    def __init__(self, halves: Halves, net: Conditioner) -> None:
        self.halves = halves
        self.net = net

    def __call__(self, kept: Array, context: Array | None = None) -> Array:
        kept = jnp.moveaxis(kept, -1, -3)
        batch = kept.shape[:-3]
        zeros = jnp.zeros((*batch, *self.halves.changed_shape), kept.dtype)
        indicator = self.halves.merge(jnp.ones_like(kept), zeros)[..., :1, :, :]
        image = jnp.moveaxis(self.halves.merge(kept, zeros), -3, -1)
        maps = jnp.moveaxis(indicator, -3, -1)
        if context is not None:
            maps = jnp.concatenate([maps, context], axis=-1)
        return self._at_changed(self.net(image, maps))

    def _at_changed(self, y: Array) -> Array:
        """The outputs at the changed pixels, ``(*batch, *changed, P * C)``."""
        channels = self.halves.event_shape[0]
        grouped = jnp.moveaxis(y.reshape(*y.shape[:-1], -1, channels), (-2, -1), (-4, -3))
        changed = jnp.moveaxis(self.halves.split(grouped)[1], (-4, -3), (-2, -1))
        return changed.reshape(*changed.shape[:-2], -1)


def _flatten_on_full_image(net: OnFullImage) -> tuple[tuple[Conditioner], Halves]:
    return (net.net,), net.halves


def _unflatten_on_full_image(halves: Halves, children: tuple[Any, ...]) -> OnFullImage:
    return OnFullImage(halves, *children)


jax.tree_util.register_pytree_node(OnFullImage, _flatten_on_full_image, _unflatten_on_full_image)


class AtEveryPixel:
    """A conditioner of images that receives a context vector at every pixel.

    Args:
        net: the network, whose context are feature maps.
        size: ``(H, W)``.
    """

    def __init__(self, net: Conditioner, size: tuple[int, ...]) -> None:
        self.net = net
        self.size = size

    def __call__(self, a: Array, context: Array) -> Array:
        shape = (*context.shape[:-1], *self.size, context.shape[-1])
        return self.net(a, jnp.broadcast_to(context[..., None, None, :], shape))


jax.tree_util.register_pytree_node(
    AtEveryPixel,
    lambda net: ((net.net,), net.size),
    lambda size, children: AtEveryPixel(*children, size),
)


class WithoutContext(NamedTuple):
    """A network of the kept half that ignores the context."""

    net: Layer

    def __call__(self, a: Array, context: Array | None = None) -> Array:
        return self.net(a)


def conditioner(module: nn.Module) -> Conditioner:
    """Translate the network of a coupling without a context to JAX."""
    net = to_jax(module)
    return net if _takes_context(net) else WithoutContext(net)


def conditioner_of_context(module: nn.Module) -> Conditioner:
    """Translate the network of a conditional coupling to JAX.

    Raises:
        ValueError: if the translated network takes no context.
    """
    net = to_jax(module)
    if not _takes_context(net):
        raise ValueError(
            "net: expected a network of the kept half and a context, got "
            f"{type(module).__name__}, whose translation has no argument context; add one with "
            "to_jax.register(type, function)."
        )
    return net


def _takes_context(net: Any) -> bool:
    return "context" in inspect.signature(net).parameters


@to_jax.register
def _gated_conv(module: conditioners.GatedConv) -> GatedConv:
    to_jax(module.dropout)  # raises in training mode
    context = to_jax(module.context) if module.context is not None else None
    return GatedConv(to_jax(module.first), context, to_jax(module.second))


@to_jax.register
def _attention(module: gated._SelfAttention) -> SelfAttention:
    to_jax(module.dropout)
    project = to_jax(module.project)
    shape = (3, module.heads, -1)
    bias = project.bias.reshape(*shape)[..., None, :]
    weight = project.weight.reshape(*shape, project.weight.shape[-1])
    return SelfAttention(weight, bias, to_jax(module.gate))


@to_jax.register
def _maxout(module: gated._Maxout) -> Maxout:
    to_jax(module.dropout)
    return Maxout(to_jax(module.project), to_jax(module.gate))


@to_jax.register
def _gated_block(module: attention._Block) -> GatedBlock:
    mixing = to_jax(module.mixing) if module.mixing is not None else None
    return GatedBlock(
        to_jax(module.conv), to_jax(module.conv_norm), mixing, to_jax(module.mixing_norm)
    )


@to_jax.register
def _gated_stack(module: conditioners.GatedStack) -> GatedStack:
    positions = module.positions
    return GatedStack(
        to_jax(module.first),
        array(0.0 if positions is None else positions.permute(1, 2, 0)),
        tuple(to_jax(block) for block in module.blocks),
    )


@to_jax.register
def _gated_net(module: conditioners.GatedNet) -> GatedNet | ActivatedGatedNet:
    kind = ActivatedGatedNet if module.last_activation else GatedNet
    return kind(to_jax(module.features), to_jax(module.last))


@to_jax.register
def _zero_conv(module: convolutional.ZeroConv2d) -> Layer:
    gain = (3 * module.log_gain).exp().detach()
    return convolution(
        module.weight.detach() * gain.reshape(-1, 1, 1, 1), module.bias.detach() * gain
    )


@to_jax.register
def _conv_net(module: conditioners.ConvNet) -> ContextJoined:
    relu = to_jax(nn.ReLU())
    layers = to_jax(module.first), relu, to_jax(module.second), relu, to_jax(module.last)
    return ContextJoined(Chain(layers))


@to_jax.register
def _residual_block(module: residual._Block) -> ResidualBlock:
    relu, layers = to_jax(nn.ReLU()), []
    for norm, conv in zip(module.norms, module.convolutions, strict=True):
        layers += [to_jax(norm), relu, to_jax(conv)]
    return ResidualBlock(Chain(tuple(layers)))


@to_jax.register
def _residual_net(module: conditioners.ResidualNet) -> ResidualNet:
    last = Chain((to_jax(module.last_norm), to_jax(nn.ReLU()), to_jax(module.last)))
    return ResidualNet(
        to_jax(module.input_norm),
        to_jax(module.first),
        tuple(to_jax(block) for block in module.blocks),
        tuple(to_jax(skip) for skip in module.skips),
        last,
    )


@to_jax.register
def _on_full_image(module: transforms.OnFullImage) -> OnFullImage:
    return OnFullImage(Halves.of(module.mask), conditioner(module.net))


@to_jax.register
def _at_every_pixel(module: transforms.AtEveryPixel) -> AtEveryPixel:
    return AtEveryPixel(conditioner_of_context(module.net), tuple(module.size))
