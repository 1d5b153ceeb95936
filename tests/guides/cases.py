"""A small model and guides for it."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_resflow.guides import AutoResidualFlow

DATA = torch.tensor([0.3, -1.2, 2.0, 0.7])


def hierarchical() -> None:
    """Global and local variables, constrained and not, scalars and vectors: 9 entries."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=scale.dtype)))
    with pyro.plate("data", 4):
        local = pyro.sample("local", dist.Normal(0.0, scale))
        pyro.sample("obs", dist.Normal(local, 0.5), obs=DATA.to(scale.dtype))
    pyro.sample("pair", dist.Normal(torch.zeros(2, dtype=scale.dtype), 1.0).to_event(1))


def small(model: Callable[..., None], **options: object) -> AutoResidualFlow:
    return AutoResidualFlow(model, blocks=2, hidden_dims=[8], **options)


def perturbed(guide: AutoResidualFlow, *args: Tensor) -> AutoResidualFlow:
    """The guide away from its start, as if it had been trained."""
    guide(*args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return guide


def unpacked(guide: AutoResidualFlow, latent: Tensor) -> dict[str, Tensor]:
    """The unconstrained value of each site."""
    return {site["name"]: value for site, value in guide._unpack_latent(latent)}


def train(
    model: Callable[..., None],
    guide: nn.Module,
    *args: Tensor,
    steps: int = 3,
    lr: float = 1e-2,
    **elbo: object,
) -> list[float]:
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO(**elbo))
    return [svi.step(*args) for _ in range(steps)]
