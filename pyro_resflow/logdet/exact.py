"""The log-determinant itself, from the whole Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..linearization import (
    Linearizable,
    differentiable_point,
    flatten_batch,
    resolve_event_dim,
)


class Exact:
    r"""log|det(I + J)| of the full Jacobian; deterministic, differentiable twice.

    Costs one product with the Jacobian per dimension and :math:`O(D^3)` for the determinant: for
    small events, contract tests, Hamiltonian Monte Carlo and importance-weighted bounds.

    Args:
        dtype: type in which the determinant is computed from the Jacobian; default: the
            network's. To evaluate the network in another type too, convert the flow:
            ``flow.double()``.
        chunk_size: rows of the Jacobian computed at once; default: all of them.

    Raises:
        ValueError: for a chunk size below 1.

    Example:
        >>> import torch
        >>> from pyro_resflow.logdet import Exact
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> g, logdet = Exact(dtype=torch.float64)(LipschitzMLP(3), torch.randn(7, 3))
        >>> logdet.dtype
        torch.float32
    """

    is_deterministic = True

    def __init__(self, *, dtype: torch.dtype | None = None, chunk_size: int | None = None) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: expected an integer of at least 1, got {chunk_size}.")
        self.dtype = dtype
        self.chunk_size = chunk_size

    def __call__(
        self, net: nn.Module | Linearizable, x: Tensor, event_dim: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """g(x), same shape as x, and log|det(I + J_g(x))|, shape ``x.shape[:-event_dim]``."""
        flat, batch_shape = flatten_batch(x, resolve_event_dim(net, event_dim))
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = differentiable_point(flat)
            g = net(point)
            jacobian = self._jacobian(g, point, create_graph=differentiable)
            identity = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=x.device)
            logdet = torch.linalg.slogdet(identity + jacobian)[1]
        if not differentiable:
            g, logdet = g.detach(), logdet.detach()
        return g.to(x.dtype).reshape(x.shape), logdet.to(x.dtype).reshape(batch_shape)

    def _jacobian(self, g: Tensor, x: Tensor, create_graph: bool) -> Tensor:
        """The Jacobian of each sample, shape ``(N, D, D)``."""
        samples, size = x.shape[0], x[0].numel() if x.shape[0] else x.shape[1:].numel()
        units = torch.eye(size, dtype=g.dtype, device=g.device)
        basis = units.reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)
        rows = [
            torch.autograd.grad(
                g,
                x,
                chunk,
                is_grads_batched=True,
                create_graph=create_graph,
                retain_graph=True,
                materialize_grads=True,
            )[0]
            for chunk in basis.split(self.chunk_size or size)
        ]
        jacobian = torch.cat(rows).reshape(size, samples, size).transpose(0, 1)
        return jacobian.to(self.dtype or g.dtype)
