"""Translate this package's transforms of images and its couplings to NumPyro."""

from __future__ import annotations

import torch
from torch.distributions import transforms as torch_transforms

from ... import transforms
from ...extras import extra
from ...flows.conditional import ConditionalEncoder
from ...flows.contexts import Labels
from .conditioners import conditioner, conditioner_of_context
from .convolutions import check_evaluating
from .couplings import (
    ConditionalCouplingTransform,
    ConditionedCouplingTransform,
    CouplingTransform,
    HalvesTransform,
)
from .halves import Halves
from .images import (
    ChannelPermutationTransform,
    ConditionalSplitTransform,
    Conv1x1Transform,
    LogitTransform,
    SplitTransform,
    SqueezeTransform,
)
from .labels import LabelledTransform
from .layers import array
from .maps import to_jax_map
from .transforms import ConditionalCompose
from .translated import Independent
from .translation import feature_array, to_numpyro

with extra("numpyro"):
    from numpyro.distributions.transforms import (
        AffineTransform,
        ReshapeTransform,
    )


@to_numpyro.register
def _logit(flow: transforms.Logit) -> LogitTransform:
    return LogitTransform(flow.alpha, flow.domain.event_dim)


@to_numpyro.register
def _squeeze(flow: transforms.Squeeze) -> SqueezeTransform:
    return SqueezeTransform(flow.factor)


@to_numpyro.register
def _reshape(flow: torch_transforms.ReshapeTransform) -> ReshapeTransform:
    return ReshapeTransform(tuple(flow.out_shape), tuple(flow.in_shape))


@to_numpyro.register
def _split(flow: transforms.Split) -> SplitTransform:
    return SplitTransform(to_numpyro(flow.inner), tuple(flow.event_shape), flow.kept)


@to_numpyro.register
def _on_halves(flow: transforms.OnHalves) -> HalvesTransform:
    return HalvesTransform(to_numpyro(flow.kept), to_numpyro(flow.changed), Halves.of(flow.mask))


@to_numpyro.register
def _channel_permutation(flow: transforms.ChannelPermutation) -> ChannelPermutationTransform:
    return ChannelPermutationTransform(tuple(flow.order.tolist()))


@to_numpyro.register
@torch.no_grad()
def _conv1x1(flow: transforms.InvertibleConv1x1) -> Conv1x1Transform:
    return Conv1x1Transform(array(flow.matrix()))


@to_numpyro.register
@torch.no_grad()
def _batch_norm(flow: transforms.BatchNorm) -> Independent:
    if not bool(flow.initialized):
        raise ValueError(
            "flow: expected an initialised flow, got one whose BatchNorm is not initialised; call "
            "pyro_resflow.transforms.initialize(flow, data) first."
        )
    check_evaluating(flow)
    event_dim = flow.domain.event_dim
    scale = (flow.variance + flow.epsilon).rsqrt()
    affine = AffineTransform(
        feature_array(-flow.mean * scale, event_dim), feature_array(scale, event_dim)
    )
    return Independent(affine, event_dim)


@to_numpyro.register
def _coupling(flow: transforms.Coupling) -> CouplingTransform:
    return CouplingTransform(
        to_jax_map(flow.elementwise), conditioner(flow.net), Halves.of(flow.mask)
    )


@to_numpyro.register
def _conditional_split(flow: transforms.ConditionalSplit) -> ConditionalSplitTransform:
    kept = flow.event_shape[0] - flow.event_shape[0] // 2
    return ConditionalSplitTransform(to_numpyro(flow.inner), tuple(flow.event_shape), kept)


@to_numpyro.register
def _conditional_encoder(flow: ConditionalEncoder) -> LabelledTransform | ConditionalCompose:
    parts = ConditionalCompose(tuple(to_numpyro(part) for part in flow.parts))
    if isinstance(flow.context, Labels):
        return LabelledTransform(array(flow.context.embedding.weight), parts)
    return parts


@to_numpyro.register
def _conditional_coupling(flow: transforms.ConditionalCoupling) -> ConditionalCouplingTransform:
    return ConditionalCouplingTransform(
        to_jax_map(flow.elementwise),
        conditioner_of_context(flow.net),
        Halves.of(flow.mask),
        tuple(flow.context_shape),
    )


@to_numpyro.register
def _conditioned_coupling(flow: transforms.ConditionedCoupling) -> ConditionedCouplingTransform:
    return _conditional_coupling(flow.conditional).condition(array(flow.context))
