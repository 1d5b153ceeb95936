"""Data-dependent initialisation of a whole flow."""

from __future__ import annotations

from collections.abc import Iterator

from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor
from torch.distributions import Transform

from ...nn import DataInitialized, initialize_by
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
    """Let data initialise every part of a flow that data initialise.

    These are every :class:`ActNorm` and :class:`BatchNorm`, and the layers of conditioners that
    are scaled so. All are put back to waiting, whatever they have seen or learned before; then the
    data pass, without gradients, from data to noise, in training mode or not.

    A flow that is not initialised so waits for the first batch that ``log_prob`` scores in
    training mode. That batch needs at least 16 samples, and no Markov chain may be asking; in
    evaluation mode a score is an error. Samples drawn meanwhile, and what is given to the
    transform directly, initialise nothing: an ActNorm is the identity so long, the other parts are
    as they were built, and a warning says so once.

    Args:
        flow: from noise to data, such as an image flow or what a ``TransformedDistribution`` is
            built of; of a transform from data to noise give the inverse, ``t.inv``. The
            transform, or with a context the conditional transform.
        data: shape ``(*batch, *event_shape)``, at least two samples.
        context: what to condition on, one for each sample or for all.
        chunk_size: how many samples pass at once, where all of them take too much memory. The
            result is that of all, to rounding; the cost is a pass for every part that waits.
            Default: all at once, in a single pass.

    Raises:
        ValueError: for a single sample, for data that the flow does not take, or for a context
            without a conditional transform or the other way about.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock, ResidualFlow
        >>> from pyro_resflow.transforms import initialize
        >>> flow = ResidualFlow((1, 8, 8), blocks=(2, 2), network=ConvBlock(16))
        >>> initialize(flow, torch.rand(32, 1, 8, 8))
        >>> z = flow.inv(torch.rand(1, 1, 8, 8))
    """
    event_dim = event_dims(_at(flow, context))[1]
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
            part.await_batch()

    def to_noise(chunk: Chunk) -> None:
        samples, its_context = chunk
        transform = _at(flow, its_context)
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
    """The samples with their contexts, so many at once."""
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
    """Event dimensions of a conditional transform's context; 1 unless it says otherwise."""
    while hasattr(flow, "transform"):  # an inverse
        flow = flow.transform
    return int(getattr(flow, "context_event_dim", 1))


def _at(flow: Transform | ConditionalTransform, context: Tensor | None) -> Transform:
    """The transform at the context, if it takes one."""
    if isinstance(flow, ConditionalTransform):
        if context is None:
            raise ValueError("context: the flow is conditional; expected one for each sample.")
        return flow.condition(context)
    if context is not None:
        raise ValueError("context: expected none, the flow is not conditional.")
    return flow
