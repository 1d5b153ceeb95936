"""Log-determinants that are computed after a pass, those of several similar blocks together.

A block's value is the next block's input, but its log-determinant is needed only in the end. The
Jacobians of blocks whose networks differ in their coefficients alone can be stacked, and then an
estimate takes about as many operations as for a single block. The step of a small flow takes as
long as its operations take to be called.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...differentiation import saving_hooks
from ...nn.lipschitz.together import is_eager
from ...nn.networks.stacked import JacobianStack
from ...precision import autocast_dtype
from .deferred import Deferred, StackKey
from .one_pass import OnePass

STACKED_FEATURES = 2**18
"""Largest number of features in one stack, over all samples: 1 MiB in float32. Larger stacks
leave the processor's cache, which costs more than the calls that they save."""

KEPT_FEATURES = 2**20
"""Largest number of features of all blocks that defer: the graph keeps about 12 bytes of each in
float32, also for an estimator that recomputes features to save memory."""

FEWEST_OF_MANY = 4
"""Fewest blocks in a stack that does not hold all: two or three of a large batch gain nothing."""


def stacks_of(passes: Sequence[OnePass], x: Tensor, event_dim: int) -> list[int | None]:
    """The number of the stack of each transform that defers its log-determinant, else ``None``.

    Args:
        passes: the transforms.
        x: the input of the sequence.
        event_dim: its event dimensions.
    """
    found: list[int | None] = [None] * len(passes)
    if not is_eager() or saving_hooks() or autocast_dtype(x) is not None:
        return found
    members: dict[StackKey, list[int]] = {}
    for index, each in enumerate(passes):
        key = each.stack_key()
        if key is not None:
            members.setdefault(key, []).append(index)
    samples = max(1, x.shape[: x.dim() - event_dim].numel(), *map(_contexts, passes))
    first = kept = 0
    for key, indices in members.items():
        most = STACKED_FEATURES // (samples * key.features)
        if len(indices) < 2 or most < min(FEWEST_OF_MANY, len(indices)):
            continue
        kept += len(indices) * samples * key.features
        if kept > KEPT_FEATURES:
            return [None] * len(passes)
        stacks = -(-len(indices) // most)
        for position, index in enumerate(indices):
            found[index] = first + position * stacks // len(indices)
        first += stacks
    return found


def _contexts(transform: OnePass) -> int:
    """The number of contexts of a conditioned transform, to which it expands its input."""
    return 0 if transform.context is None else transform.context.shape[:-1].numel()


def sum_of_log_determinants(deferred: Sequence[tuple[int, Deferred]]) -> Tensor | float:
    """The sum of deferred log-determinants, shape ``batch``, given the stack of each."""
    stacks: dict[tuple[int, torch.Size], list[Deferred]] = {}
    for stack, each in deferred:
        stacks.setdefault((stack, each.batch_shape), []).append(each)
    total: Tensor | float = 0.0
    for members in stacks.values():
        total = total + _of_stack(members)
    return total


def _of_stack(members: Sequence[Deferred]) -> Tensor:
    first = members[0]
    stack = JacobianStack(first.net, [each.inputs for each in members])
    samples = first.batch_shape.numel()
    # the products with the Jacobians do not depend on the point, which takes no memory
    point = first.x.new_empty(()).expand(len(members) * samples, first.x.shape[-1])
    trace = first.logdet.value_and_trace(stack, point, first.function)[1]
    return trace.view(len(members), samples).sum(0).reshape(first.batch_shape)
