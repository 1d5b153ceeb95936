"""Translate Pyro transforms and distributions to NumPyro."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import torch
import torch.distributions as torch_dist
from pyro.distributions import conditional
from pyro.distributions.transforms import Permute
from torch.distributions import transforms as torch_transforms

from ... import transforms
from ...extras import extra
from ...linearization import known_event_shape
from .images import ConditionalImageNetwork, ImageNet
from .layers import Chain, array, to_jax
from .transforms import (
    ConditionalAffine,
    ConditionalCompose,
    ConditionalInverse,
    ConditionalResidualTransform,
    ContractionTransform,
    MonotoneTransform,
    ResidualTransform,
)
from .translated import Composition, Independent, Permutation, Triangular

with extra("numpyro"):
    import numpyro.distributions as dist
    from jax import Array
    from numpyro.distributions.transforms import (
        AffineTransform,
        ReshapeTransform,
        Transform,
    )


@singledispatch
def to_numpyro(flow: Any) -> Any:
    """Translate a trained flow to a NumPyro transform or distribution with the same weights.

    The translation copies the current effective weights; later training does not change it. It
    computes in 64 bits if the flow is in float64 and ``jax_enable_x64`` is on. Log-determinants
    are exact, independently of the flow's estimator; :func:`with_logdet` replaces them by
    estimates.

    ``to_numpyro.register(MyTransform, translate)`` adds a translation of another type.

    Args:
        flow: one of

            - a transform of :mod:`pyro_resflow.transforms` (except dequantizations) or a flow of
              :mod:`pyro_resflow.flows`, in evaluation mode if it has batch norms or dropout;
            - Pyro's ``Permute``, torch's ``AffineTransform`` or ``ReshapeTransform``;
            - an inverse, a composition or a conditioned transform of these;
            - a ``TransformedDistribution`` of these with a normal base distribution.

    Returns:
        A NumPyro ``Transform``. For a conditional transform, an object whose
        ``condition(context)`` returns one. For a distribution, a NumPyro ``Distribution``. All of
        them are pytrees; transforms and conditional transforms have a hash, too.

    Raises:
        ValueError: if a part of the flow has no translation; the message names it.

    Example:
        >>> import jax, torch
        >>> import numpyro.distributions as dist
        >>> from pyro_resflow import residual_flow
        >>> from pyro_resflow.interop.numpyro import to_numpyro
        >>> flow = to_numpyro(residual_flow(2, blocks=2))
        >>> density = dist.TransformedDistribution(dist.Normal().expand([2]).to_event(1), flow)
        >>> x = density.sample(jax.random.PRNGKey(0), (7,))
        >>> jax.jit(density.log_prob)(x).shape
        (7,)
    """
    raise ValueError(
        "flow: expected a flow of pyro_resflow.flows, a part of one, or a distribution with a "
        f"normal base, got {type(flow).__name__}, which has no translation to NumPyro; add one "
        "with to_numpyro.register(type, function)."
    )


@to_numpyro.register
def _residual(flow: transforms.Residual) -> Transform:
    return _contraction(ResidualTransform, flow)


@to_numpyro.register
def _monotone(flow: transforms.Monotone) -> Transform:
    return _contraction(MonotoneTransform, flow)


@to_numpyro.register
def _conditional_residual(flow: transforms.ConditionalResidual) -> Any:
    net = to_jax(flow.net)
    if flow.domain.event_dim == 1:
        return ConditionalResidualTransform(net)
    shape = tuple(image_shape(flow.net, flow))
    flatten = ReshapeTransform((math.prod(shape),), shape)
    block = ConditionalResidualTransform(ConditionalImageNetwork(net, shape))
    return ConditionalCompose((flatten, block, flatten.inv))


@to_numpyro.register
def _conditioned_residual(flow: transforms.ConditionedResidual) -> Transform:
    return _conditional_residual(flow.conditional).condition(array(flow.context))


@to_numpyro.register
def _conditional_affine(flow: transforms.ConditionalAffine) -> ConditionalAffine:
    return ConditionalAffine(to_jax(flow.net), array(flow.largest_log_scale))


@to_numpyro.register
def _conditioned_affine(flow: transforms.ConditionedAffine) -> Transform:
    return _conditional_affine(flow.conditional).condition(array(flow.context))


@to_numpyro.register
@torch.no_grad()
def _triangular_affine(flow: transforms.TriangularAffine) -> Triangular:
    scale_tril = flow.log_scale.exp()[:, None] * flow.unit_triangle()
    return Triangular(array(flow.shift), array(scale_tril))


@to_numpyro.register
def _conditional_inverse(flow: transforms.ConditionalInverse) -> ConditionalInverse:
    return ConditionalInverse(to_numpyro(flow.transform))


@to_numpyro.register
def _conditional_compose(flow: transforms.ConditionalCompose) -> ConditionalCompose:
    return ConditionalCompose(tuple(to_numpyro(part) for part in flow.parts))


@to_numpyro.register
def _conditional_compose_of_pyro(
    flow: conditional.ConditionalComposeTransformModule,
) -> ConditionalCompose:
    return ConditionalCompose(tuple(to_numpyro(part) for part in flow.transforms))


@to_numpyro.register
def _constant(flow: conditional.ConstantConditionalTransform) -> Transform:
    return to_numpyro(flow.transform)


@to_numpyro.register
def _inverse(flow: transforms.Inverse) -> Transform:
    return to_numpyro(flow.transform).inv


@to_numpyro.register
def _torch_inverse(flow: torch_transforms._InverseTransform) -> Transform:
    return to_numpyro(flow.inv).inv


@to_numpyro.register(transforms.Compose)
@to_numpyro.register(torch_dist.ComposeTransform)
def _compose(flow: Any) -> Composition:
    return Composition([to_numpyro(part) for part in flow.parts])


@to_numpyro.register
@torch.no_grad()
def _act_norm(flow: transforms.ActNorm) -> Independent:
    if not bool(flow.initialized):
        raise ValueError(
            "flow: expected an initialised flow, got one whose ActNorm is not initialised; call "
            "pyro_resflow.transforms.initialize(flow, data) first."
        )
    event_dim = flow.domain.event_dim
    affine = AffineTransform(
        feature_array(flow.shift, event_dim), feature_array(flow.log_scale.exp(), event_dim)
    )
    return Independent(affine, event_dim)


@to_numpyro.register
def _permute(flow: Permute) -> Permutation:
    if flow.dim != -1:
        raise ValueError(f"flow: expected a Permute of the last dimension, got dim={flow.dim}.")
    return Permutation(array(flow.permutation))


@to_numpyro.register
def _affine(flow: torch_dist.AffineTransform) -> Transform:
    return Independent(AffineTransform(array(flow.loc), array(flow.scale)), flow.event_dim)


@to_numpyro.register
def _transformed(flow: torch_dist.TransformedDistribution) -> dist.TransformedDistribution:
    return dist.TransformedDistribution(
        to_numpyro(flow.base_dist), [to_numpyro(part) for part in flow.transforms]
    )


@to_numpyro.register(torch_dist.Independent)
def _independent(flow: Any) -> dist.Independent:
    return to_numpyro(flow.base_dist).to_event(flow.reinterpreted_batch_ndims)


@to_numpyro.register
def _normal(flow: torch_dist.Normal) -> dist.Normal:
    return dist.Normal(array(flow.loc), array(flow.scale))


@to_numpyro.register
def _multivariate_normal(flow: torch_dist.MultivariateNormal) -> dist.MultivariateNormal:
    return dist.MultivariateNormal(array(flow.loc), scale_tril=array(flow.scale_tril))


def _contraction(
    kind: type[ContractionTransform], flow: transforms.Residual | transforms.Monotone
) -> Transform:
    """The transform by a contraction; images are flattened before it and restored after it."""
    event_dim = flow.domain.event_dim
    if event_dim == 1:
        net = to_jax(flow.net)
        return kind(net if isinstance(net, Chain) else Chain((net,)))
    shape = tuple(image_shape(flow.net, flow))
    flatten = ReshapeTransform((math.prod(shape),), shape)
    return Composition([flatten, kind(ImageNet(to_jax(flow.net), shape)), flatten.inv])


def image_shape(net: Any, flow: Any) -> torch.Size:
    """The shape ``(C, H, W)`` that the network of a block of images knows.

    Raises:
        ValueError: naming the block, if there is none.
    """
    event_dim = flow.domain.event_dim
    shape = known_event_shape(net, event_dim)
    if event_dim != 3 or shape is None:
        raise ValueError(
            f"flow: expected a {type(flow).__name__} of vectors, or of images with a network that "
            f"has an attribute event_shape = (C, H, W), got {event_dim} event dimensions and a "
            f"network with event_shape {shape}."
        )
    return shape


def feature_array(features: torch.Tensor, event_dim: int) -> Array:
    """Copy one value per feature to an array that broadcasts over the events' other entries."""
    return array(features.reshape(*features.shape, *[1] * (event_dim - features.dim())))
