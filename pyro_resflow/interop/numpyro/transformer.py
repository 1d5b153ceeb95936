"""Jet's conditioner in JAX."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...extras import extra
from ...nn.conditioners import transformer
from .convolutions import ChannelNorm
from .layers import Layer, array, to_jax

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    from jax import Array


class TransformerBlock(NamedTuple):
    """Self-attention and a multilayer perceptron, each added to its input.

    Attributes:
        norms: the normalisations before the two.
        project: weights of queries, keys and values, shape ``(3, heads, width, channels)``.
        bias: their biases, shape ``(3, heads, 1, width)``.
        join: the last layer of the attention.
        expand: the first layer of the perceptron.
        contract: the last layer of the perceptron.
    """

    norms: tuple[ChannelNorm, ...]
    project: Array
    bias: Array
    join: Layer
    expand: Layer
    contract: Layer

    def __call__(self, tokens: Array) -> Array:
        tokens = tokens + self.attended(self.norms[0](tokens))
        hidden = jax.nn.gelu(self.expand(self.norms[1](tokens)), approximate=True)
        return tokens + self.contract(hidden)

    def attended(self, tokens: Array) -> Array:
        """Self-attention of tokens ``(*batch, T, channels)``."""
        heads = jnp.einsum("...pc,khdc->...khpd", tokens, self.project, precision="highest")
        query, key, value = jnp.moveaxis(heads + self.bias, -4, 0)
        scores = jnp.einsum("...pd,...qd->...pq", query, key, precision="highest")
        weights = jax.nn.softmax(scores / jnp.sqrt(query.shape[-1]).astype(tokens.dtype), axis=-1)
        attended = jnp.einsum("...hpq,...hqd->...phd", weights, value, precision="highest")
        return self.join(attended.reshape(tokens.shape))


class TransformerNet(NamedTuple):
    """A vision transformer whose tokens are pixels.

    Attributes:
        first: embeds the pixels.
        positions: added to the embeddings, shape ``(H W, channels)``.
        blocks: the blocks.
        norm: the normalisation before the last layer.
        last: computes the parameters.
    """

    first: Layer
    positions: Array
    blocks: tuple[TransformerBlock, ...]
    norm: ChannelNorm
    last: Layer

    def __call__(self, a: Array, context: Array | None = None) -> Array:
        pixels = a if context is None else jnp.concatenate([a, context], axis=-1)
        tokens = self.first(pixels.reshape(*pixels.shape[:-3], -1, pixels.shape[-1]))
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        parameters = self.last(self.norm(tokens))
        return parameters.reshape(*a.shape[:-1], parameters.shape[-1])


@to_jax.register
def _block(module: transformer._Block) -> TransformerBlock:
    shape = (3, module.heads, -1)
    weight = array(module.project.weight).reshape(*shape, module.project.in_features)
    bias = array(module.project.bias).reshape(*shape)[..., None, :]
    layers = (to_jax(layer) for layer in (module.join, module.expand, module.contract))
    return TransformerBlock(tuple(map(_norm, module.norms)), weight, bias, *layers)


@to_jax.register
def _net(module: transformer.TransformerNet) -> TransformerNet:
    return TransformerNet(
        to_jax(module.first),
        array(module.positions),
        tuple(to_jax(block) for block in module.blocks),
        _norm(module.norm),
        to_jax(module.last),
    )


def _norm(module: Any) -> ChannelNorm:
    return ChannelNorm(array(module.weight), array(module.bias), array(module.eps))
