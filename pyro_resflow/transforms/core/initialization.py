"""Data-dependent initialisation of a flow."""

from __future__ import annotations

from collections.abc import Iterator

from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor
from torch.distributions import Transform

from ...nn import DataInitialized, initialize_by
from ...nn.initialization import writing_to
from .checks import check_event_shape
from .evaluation import clear_cache, event_dims, inverse_value
from .inside import inside

Chunk = tuple[Tensor, Tensor | None]


def initialize(
    flow: Transform | ConditionalTransform,
    data: Tensor,
    context: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> None:
    """Initialise the data-dependent parts of a flow from a batch of data.

    These parts are every :class:`ActNorm` and :class:`BatchNorm`, and the conditioner layers with
    data-dependent scales. All of them are reset, even if they are already initialised or trained.
    Then the data pass through the flow from data to noise, without gradients, in training and in
    evaluation mode alike.

    Without this function, a flow is initialised by the first batch that ``log_prob`` scores in
    training mode. That batch needs at least 16 samples and must not come from a Markov chain. In
    evaluation mode scoring raises an error until then. Drawing samples and calling the transform
    directly do not initialise the flow: an ActNorm is the identity, other parts are as they were
    built, and one warning says so.

    Args:
        flow: transform from noise to data, for instance an image flow or a transform of a
            ``TransformedDistribution``. For a transform t from data to noise pass the inverse,
            ``t.inv``. With a context, the conditional transform.
        data: shape ``(*batch, *event_shape)``, at least two samples.
        context: the context, one for each sample or one for all.
        chunk_size: number of samples in one pass, to save memory. The result is the same up to
            rounding; the cost is one pass over the data for each part to be initialised. By
            default all samples go through in a single pass.

    Raises:
        ValueError: for a single sample, for data of a wrong shape, for a conditional flow without
            a context, or for a context without a conditional flow.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock, ResidualFlow
        >>> from pyro_resflow.transforms import initialize
        >>> flow = ResidualFlow((1, 8, 8), blocks=(2, 2), network=ConvBlock(16))
        >>> initialize(flow, torch.rand(32, 1, 8, 8))
        >>> z = flow.inv(torch.rand(1, 1, 8, 8))
    """
    event_dim = event_dims(_conditioned(flow, context))[1]
    batch_dim = max(data.dim() - event_dim, 0)
    check_event_shape("data", data, data.shape[batch_dim:])
    if data.shape[:batch_dim].numel() < 2:
        raise ValueError(
            f"data: expected a batch of at least two samples, got shape {tuple(data.shape)}; a "
            "single sample has no standard deviation."
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}.")
    for part in inside(flow):
        if isinstance(part, DataInitialized):
            with writing_to(part.initialized):
                part.await_batch()

    def to_noise(chunk: Chunk) -> None:
        samples, chunk_context = chunk
        transform = _conditioned(flow, chunk_context)
        inverse_value(transform, samples)
        clear_cache(transform)

    initialize_by(to_noise, list(_chunks(flow, data, context, batch_dim, chunk_size)))


def _chunks(
    flow: Transform | ConditionalTransform,
    data: Tensor,
    context: Tensor | None,
    batch_dim: int,
    chunk_size: int | None,
) -> Iterator[Chunk]:
    """Yield ``chunk_size`` samples at a time with their contexts."""
    batch_shape = data.shape[:batch_dim]
    if chunk_size is None or chunk_size >= batch_shape.numel():
        yield data, context
        return
    samples = data.flatten(0, batch_dim - 1).split(chunk_size)
    if context is None:
        yield from ((chunk, None) for chunk in samples)
        return
    context_event = context.shape[context.dim() - _context_event_dim(flow) :]
    contexts = context.expand(*batch_shape, *context_event).flatten(0, batch_dim - 1)
    yield from zip(samples, contexts.split(chunk_size), strict=True)


def _context_event_dim(flow: object) -> int:
    """Event dimensions of a conditional transform's context; 1 if it does not declare them."""
    while hasattr(flow, "transform"):  # an inverse
        flow = flow.transform
    return int(getattr(flow, "context_event_dim", 1))


def _conditioned(flow: Transform | ConditionalTransform, context: Tensor | None) -> Transform:
    """The flow at the context if it is conditional, else the flow itself."""
    if isinstance(flow, ConditionalTransform):
        if context is None:
            raise ValueError(
                "context: expected a context for each sample, because the flow is conditional, "
                "got None."
            )
        return flow.condition(context)
    if context is not None:
        raise ValueError(
            "context: expected None, because the flow is not conditional, got a tensor of shape "
            f"{tuple(context.shape)}."
        )
    return flow
