"""NumPyro transforms of images ``(*batch, C, H, W)``."""

from __future__ import annotations

import math
from typing import Any

from ...extras import extra
from .layers import ConditionalNetwork, Layer, shifted
from .translated import Comparable, Flattened, OnePassTransform, backward, forward

with extra("numpyro"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import Array
    from jax.scipy.special import logit
    from numpyro.distributions import constraints
    from numpyro.distributions.transforms import Transform
    from numpyro.distributions.util import sum_rightmost

IMAGES = constraints.independent(constraints.real, 3)


class LogitTransform(OnePassTransform):
    """y = logit(alpha + (1 - 2 alpha) x) for each entry.

    Args:
        alpha: the margin.
        event_dim: number of event dimensions, over which the log-determinant is summed.
    """

    def __init__(self, alpha: float, event_dim: int) -> None:
        self.alpha = alpha
        self.event_dim = event_dim

    @property
    def domain(self) -> Any:
        margin = self.alpha / (1 - 2 * self.alpha)
        interval = constraints.interval(-margin, 1 + margin)
        return constraints.independent(interval, self.event_dim)

    @property
    def codomain(self) -> Any:
        return constraints.independent(constraints.real, self.event_dim)

    def forward(self, x: Array) -> tuple[Array, Array]:
        y = logit(self.alpha + (1 - 2 * self.alpha) * x)
        return y, self._ladj(y)

    def backward(self, y: Array) -> tuple[Array, Array]:
        return (jax.nn.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha), self._ladj(y)

    def _ladj(self, y: Array) -> Array:
        entries = math.log1p(-2 * self.alpha) + jax.nn.softplus(y) + jax.nn.softplus(-y)
        return sum_rightmost(entries, self.event_dim)

    def tree_flatten(self) -> Flattened:
        return (), ((), {"alpha": self.alpha, "event_dim": self.event_dim})


class SqueezeTransform(OnePassTransform):
    """Trade image size for channels: ``(C, H, W)`` to ``(C f^2, H/f, W/f)``.

    Args:
        factor: f.
    """

    domain = IMAGES
    codomain = IMAGES

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def forward(self, x: Array) -> tuple[Array, Array]:
        *batch, channels, height, width = x.shape
        f = self.factor
        tiles = x.reshape(*batch, channels, height // f, f, width // f, f)
        y = jnp.moveaxis(tiles, (-3, -1), (-4, -3))
        return y.reshape(self.forward_shape(x.shape)), jnp.zeros(x.shape[:-3], x.dtype)

    def backward(self, y: Array) -> tuple[Array, Array]:
        *batch, channels, height, width = y.shape
        f = self.factor
        tiles = y.reshape(*batch, channels // (f * f), f, f, height, width)
        x = jnp.moveaxis(tiles, (-4, -3), (-3, -1))
        return x.reshape(self.inverse_shape(y.shape)), jnp.zeros(y.shape[:-3], y.dtype)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        *batch, channels, height, width = shape
        f = self.factor
        return (*batch, channels * f * f, height // f, width // f)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        *batch, channels, height, width = shape
        f = self.factor
        return (*batch, channels // (f * f), height * f, width * f)

    def tree_flatten(self) -> Flattened:
        return (), ((), {"factor": self.factor})


class ChannelPermutationTransform(OnePassTransform):
    """Reorder the channels: channel i of the output is channel ``order[i]`` of the input.

    Args:
        order: a permutation of 0, 1, ...
    """

    domain = IMAGES
    codomain = IMAGES

    def __init__(self, order: tuple[int, ...]) -> None:
        self.order = order

    def forward(self, x: Array) -> tuple[Array, Array]:
        return x[..., np.array(self.order), :, :], jnp.zeros(x.shape[:-3], x.dtype)

    def backward(self, y: Array) -> tuple[Array, Array]:
        inverse = np.argsort(self.order)
        return y[..., inverse, :, :], jnp.zeros(y.shape[:-3], y.dtype)

    def tree_flatten(self) -> Flattened:
        return (), ((), {"order": self.order})


class Conv1x1Transform(OnePassTransform):
    """Mix the channels of every pixel by one matrix.

    Args:
        matrix: shape ``(C, C)``.
    """

    domain = IMAGES
    codomain = IMAGES

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix

    def forward(self, x: Array) -> tuple[Array, Array]:
        y = jnp.einsum("ij,...jhw->...ihw", self.matrix, x, precision="highest")
        return y, self._ladj(x)

    def backward(self, y: Array) -> tuple[Array, Array]:
        pixels = y.reshape(*y.shape[:-2], -1)
        x = jnp.linalg.solve(
            jnp.broadcast_to(self.matrix, (*y.shape[:-3], *self.matrix.shape)), pixels
        )
        return x.reshape(y.shape), self._ladj(y)

    def _ladj(self, x: Array) -> Array:
        pixels = x.shape[-2] * x.shape[-1]
        return jnp.broadcast_to(pixels * jnp.linalg.slogdet(self.matrix)[1], x.shape[:-3])

    def tree_flatten(self) -> Flattened:
        return (self.matrix,), (("matrix",), {})


class SplitTransform(OnePassTransform):
    """Factor out the second half of the channels as a vector and transform the first.

    Args:
        inner: transform of images ``(kept, H, W)`` to vectors.
        event_shape: ``(C, H, W)``.
        kept: number of channels of the inner transform's input.
    """

    domain = IMAGES
    codomain = constraints.real_vector

    def __init__(self, inner: Transform, event_shape: tuple[int, ...], kept: int) -> None:
        self.inner = inner
        self.event_shape = event_shape
        self.kept = kept

    def forward(self, x: Array) -> tuple[Array, Array]:
        a, b = jnp.split(x, [self.kept], axis=-3)
        z, ladj = forward(self.inner, a)
        b = b.reshape(*b.shape[:-3], -1)
        b = jnp.broadcast_to(b, (*z.shape[:-1], b.shape[-1]))  # the context's batch is in z
        return jnp.concatenate([b, z], axis=-1), ladj

    def backward(self, y: Array) -> tuple[Array, Array]:
        channels, height, width = self.event_shape
        factored = channels - self.kept
        b, z = jnp.split(y, [factored * height * width], axis=-1)
        a, ladj = backward(self.inner, z)
        b = b.reshape(*y.shape[:-1], factored, height, width)
        b = jnp.broadcast_to(b, (*a.shape[:-3], factored, height, width))
        return jnp.concatenate([a, b], axis=-3), ladj

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        inner = self.inner.forward_shape((*shape[:-3], self.kept, *self.event_shape[1:]))
        return (*inner[:-1], math.prod(self.event_shape))

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        kept = math.prod((self.kept, *self.event_shape[1:]))
        inner = self.inner.inverse_shape((*shape[:-1], kept))
        return (*inner[:-3], *self.event_shape)

    def tree_flatten(self) -> Flattened:
        static = {"event_shape": self.event_shape, "kept": self.kept}
        return (self.inner,), (("inner",), static)


class ConditionalSplitTransform(Comparable):
    """Factor out the second half of the channels and transform the first, given a context.

    Args:
        inner: conditional transform of images ``(kept, H, W)`` to vectors.
        event_shape: ``(C, H, W)``.
        kept: number of channels of the inner transform's input.
    """

    def __init__(self, inner: Any, event_shape: tuple[int, ...], kept: int) -> None:
        self.inner = inner
        self.event_shape = event_shape
        self.kept = kept

    def condition(self, context: Array) -> SplitTransform:
        """The split at a context of shape ``(*batch, context_dim)``."""
        return SplitTransform(self.inner.condition(context), self.event_shape, self.kept)


class ImageNet:
    """A network of images as a network of vectors ``(*batch, C * H * W)``, for contractions.

    Args:
        net: the network, which takes ``(*batch, H, W, C)``.
        event_shape: ``(C, H, W)``.
    """

    def __init__(self, net: Layer, event_shape: tuple[int, ...]) -> None:
        self.net = net
        self.event_shape = event_shape

    def __call__(self, x: Array) -> Array:
        images = x.reshape(*x.shape[:-1], *self.event_shape)
        y = jnp.moveaxis(self.net(jnp.moveaxis(images, -3, -1)), -1, -3)
        return y.reshape(x.shape)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The batch dimensions of the context; empty without a context."""
        shape: tuple[int, ...] = getattr(self.net, "batch_shape", ())
        return shape[: max(0, len(shape) - 2)]  # a shift is one value for each channel


class ConditionalImageNetwork:
    """A chain of images whose affine layers are shifted by a network of the context.

    Args:
        net: the chain, and the network of the shifts.
        event_shape: ``(C, H, W)``.
    """

    def __init__(self, net: ConditionalNetwork, event_shape: tuple[int, ...]) -> None:
        self.net = net
        self.event_shape = event_shape

    def bind(self, context: Array) -> ImageNet:
        """The network given a context of shape ``(*batch, context_dim)``."""
        shifts = self.net.shifts(context)[..., None, None, :]
        return ImageNet(shifted(self.net.chain, shifts), self.event_shape)


jax.tree_util.register_pytree_node(
    ImageNet,
    lambda net: ((net.net,), net.event_shape),
    lambda event_shape, children: ImageNet(*children, event_shape),
)
jax.tree_util.register_pytree_node(
    ConditionalImageNetwork,
    lambda net: ((net.net,), net.event_shape),
    lambda event_shape, children: ConditionalImageNetwork(*children, event_shape),
)
jax.tree_util.register_pytree_node(
    ConditionalSplitTransform,
    lambda split: ((split.inner,), (split.event_shape, split.kept)),
    lambda static, children: ConditionalSplitTransform(*children, *static),
)
