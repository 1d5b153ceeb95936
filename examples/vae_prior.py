"""A variational autoencoder with a residual flow as its prior, compared with a normal prior.

The two differ only in the prior of the code: the networks, their initial weights, the order of the
images and the number of steps, or the time, are the same. With ``--posterior_blocks`` the flow's
model has an amortized flow as its posterior, too. The program prints the evidence lower bound of
the test images and the flow's gain, averaged over images, for several seeds. The figure shows
samples of both.

    python -m examples.vae_prior
    python -m examples.vae_prior --seeds '[0]' --steps 500
    python -m examples.vae_prior --seconds 60 --learning_rates '[1e-3,2e-3,4e-3]'
    python -m examples.vae_prior --source FashionMnist --hidden 400 --code_dim 16 --steps 20000
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import DenseNN
from torch import Tensor, nn
from torchvision.utils import make_grid

from examples.images import sources
from examples.parsing import command_line
from examples.plotting import save_figure
from examples.training import Budget, Training, train_within
from pyro_resflow import residual_flow
from pyro_resflow.guides import AmortizedResidualFlow


class Prior(nn.Module):
    """The prior of the code: standard normal noise, pushed through transforms if there are any.

    Args:
        code_dim: Size of the code.
        transforms: Map noise to codes.
    """

    def __init__(self, code_dim: int, transforms: Sequence[dist.TransformModule] = ()) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.transforms = nn.ModuleList(transforms)

    def forward(self) -> dist.TorchDistribution:
        """Return the distribution, of event shape ``(code_dim,)``."""
        noise = dist.Normal(torch.zeros(self.code_dim), torch.ones(self.code_dim)).to_event(1)
        return dist.TransformedDistribution(noise, list(self.transforms))


class NormalPosterior(nn.Module):
    """A normal distribution of codes whose mean and scales an encoder computes from images.

    Args:
        pixels: Number of pixels.
        hidden: Size of the hidden layer.
        code_dim: Size of the code.
    """

    def __init__(self, pixels: int, hidden: int, code_dim: int) -> None:
        super().__init__()
        self.encoder = DenseNN(pixels, [hidden], [code_dim, code_dim], nonlinearity=nn.SiLU())

    def forward(self, images: Tensor) -> dist.TorchDistribution:
        """Return the codes' distribution, given images on [0, 1], ``(n, pixels)``."""
        mean, log_std = self.encoder(images)
        return dist.Normal(mean, log_std.exp()).to_event(1)


class FlowPosterior(nn.Module):
    """A residual flow that depends on the features of images.

    Args:
        pixels: Number of pixels.
        hidden: Number of features.
        code_dim: Size of the code.
        blocks: Residual blocks of the flow.
    """

    def __init__(self, pixels: int, hidden: int, code_dim: int, blocks: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.SiLU())
        self.flow = AmortizedResidualFlow(code_dim, hidden, blocks)

    def forward(self, images: Tensor) -> dist.TorchDistribution:
        """Return the codes' distribution, given images on [0, 1], ``(n, pixels)``."""
        return self.flow.condition(self.encoder(images))


class VAE(nn.Module):
    """A VAE of images with grey levels 0 .. bins - 1, with a binomial for each pixel.

    Args:
        pixels: Number of pixels.
        bins: Number of grey levels.
        hidden: Size of the decoder's hidden layer.
        prior: The prior of the code.
        posterior: Maps images on [0, 1] to the distribution of their codes.
    """

    def __init__(
        self, pixels: int, bins: int, *, hidden: int, prior: Prior, posterior: nn.Module
    ) -> None:
        super().__init__()
        self.bins = bins
        self.decoder = DenseNN(prior.code_dim, [hidden], [pixels], nonlinearity=nn.SiLU())
        self.prior = prior
        self.posterior = posterior

    def model(self, images: Tensor) -> None:
        """Sample codes from the prior, and images of shape ``(n, pixels)`` given the codes."""
        pyro.module("vae", self)
        with pyro.plate("images", len(images)):
            code = pyro.sample("code", self.prior())
            pyro.sample("pixels", self.likelihood(code), obs=images)

    def guide(self, images: Tensor) -> None:
        """Sample codes given images of shape ``(n, pixels)``."""
        with pyro.plate("images", len(images)):
            pyro.sample("code", self.posterior(images / (self.bins - 1)))

    def likelihood(self, code: Tensor) -> dist.TorchDistribution:
        """Return the distribution of images given codes."""
        return dist.Binomial(self.bins - 1, logits=self.decoder(code)).to_event(1)

    @torch.no_grad()
    def elbo(self, images: Tensor, draws: int) -> Tensor:
        """Return the evidence lower bound of each image in nats, averaged over draws of codes."""
        total = torch.zeros(len(images))
        for _ in range(draws):
            guide = poutine.trace(self.guide).get_trace(images)
            model = poutine.trace(poutine.replay(self.model, guide)).get_trace(images)
            guide.compute_log_prob()
            model.compute_log_prob()
            code, pixels = model.nodes["code"], model.nodes["pixels"]
            total += code["log_prob"] + pixels["log_prob"] - guide.nodes["code"]["log_prob"]
        return total / draws

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """Return the mean images of n codes of the prior, on [0, 1], shape ``(n, pixels)``."""
        code = self.prior().sample((n,))
        return self.likelihood(code).mean / (self.bins - 1)


class Architecture(NamedTuple):
    """The sizes of a VAE.

    Attributes:
        pixels: Number of pixels.
        bins: Number of grey levels.
        code_dim: Size of the code.
        hidden: Size of the hidden layers.
        blocks: Residual blocks of the prior; a standard normal prior for 0.
        posterior_blocks: Residual blocks of the posterior; a normal posterior for 0.
    """

    pixels: int
    bins: int
    code_dim: int
    hidden: int
    blocks: int = 0
    posterior_blocks: int = 0

    def build(self, seed: int) -> VAE:
        """Build a VAE; its networks have the same initial weights for every prior.

        Training scores codes of the prior at every step and draws them for pictures only, so the
        flow's density takes one pass. The log-determinant's estimate is unbiased, and therefore
        the bound's estimate too.
        """
        pyro.set_rng_seed(seed)
        posterior: nn.Module = NormalPosterior(self.pixels, self.hidden, self.code_dim)
        prior = Prior(self.code_dim)
        vae = VAE(self.pixels, self.bins, hidden=self.hidden, prior=prior, posterior=posterior)
        if self.blocks:
            flow = residual_flow(self.code_dim, self.blocks, fast="density")
            vae.prior = Prior(self.code_dim, [flow])
        if self.posterior_blocks:
            sizes = self.pixels, self.hidden, self.code_dim, self.posterior_blocks
            vae.posterior = FlowPosterior(*sizes)
        return vae


def fit(
    vae: VAE, images: Tensor, *, budget: Budget, batch_size: int, learning_rate: float, seed: int
) -> Training:
    """Maximise the evidence lower bound over batches; the seed alone decides their order.

    The learning rate falls to a twentieth.
    """
    pyro.clear_param_store()
    order = torch.Generator().manual_seed(seed)
    model, guide = (poutine.scale(each, 1 / batch_size) for each in (vae.model, vae.guide))
    return train_within(
        budget,
        SVI(model, guide, pyro.optim.Adam({"lr": learning_rate}), Trace_ELBO()),
        ((images[torch.randint(len(images), (batch_size,), generator=order)],) for _ in count()),
        learning_rate=learning_rate,
        last=0.05,
        description=f"seed {seed}",
    )


HELD_OUT = 0.1
"""Share of the training images that choose the learning rate, if there are several."""


def best(
    architecture: Architecture,
    images: Tensor,
    *,
    budget: Budget,
    batch_size: int,
    learning_rates: Sequence[float],
    draws: int,
    seed: int,
) -> tuple[VAE, Training]:
    """Return the VAE with the best bound of held-out training images, and how it was trained.

    A single learning rate takes all images for training.
    """
    held_out = images[: math.ceil(HELD_OUT * len(images)) if len(learning_rates) > 1 else 0]
    tried = []
    for rate in learning_rates:
        vae = architecture.build(seed)
        try:
            training = fit(
                vae,
                images[len(held_out) :],
                budget=budget,
                batch_size=batch_size,
                learning_rate=rate,
                seed=seed,
            )
            bound = vae.elbo(held_out, draws).mean().item() if len(held_out) else 0.0
        except ValueError as error:  # a diverged VAE draws nan
            print(f"seed {seed} at {rate:g}: {str(error).splitlines()[0]}")
            continue
        if math.isfinite(bound):
            tried.append((bound, vae, training))
    if not tried:
        raise RuntimeError(
            f"learning_rates {list(learning_rates)}: the VAE diverged at each; try smaller ones"
        )
    return max(tried, key=lambda each: each[0])[1:]


def with_error(values: Tensor) -> str:
    """Format the mean and its standard error."""
    return f"{values.mean():.3f} +- {values.std() / len(values) ** 0.5:.3f}"


def draw_grid(axis: Axes, images: Tensor, shape: Sequence[int]) -> None:
    """Draw a square of images of shape ``(rows^2, pixels)`` on [0, 1]."""
    tiles = images.reshape(-1, 1, *shape)
    grid = make_grid(tiles, nrow=round(len(images) ** 0.5), padding=1)
    axis.imshow(grid[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def main(
    source: Literal["Digits", "FashionMnist", "Mnist5k"] = "Digits",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    steps: int = 3000,
    seconds: float | None = None,
    code_dim: int = 8,
    hidden: int = 128,
    blocks: int = 4,
    posterior_blocks: int = 0,
    batch_size: int = 128,
    learning_rates: Sequence[float] = (2e-3,),
    draws: int = 20,
    folder: Path = Path("runs/vae_prior"),
) -> None:
    """Train a VAE with each prior and seed, compare the test bounds, draw images of both.

    Args:
        source: Where the images come from, see ``examples/images/sources``.
        seeds: Each seed decides the initial weights, the order of the images and the noise.
        steps: Training steps.
        seconds: Processor seconds of training, in place of steps.
        code_dim: Size of the code.
        hidden: Size of the hidden layers of encoder and decoder.
        blocks: Residual blocks of the flow.
        posterior_blocks: Residual blocks of the flow posterior in the flow's VAE; by default its
            posterior is normal, like that of the other VAE.
        batch_size: Images at each step.
        learning_rates: Initial learning rates of Adam; each falls to a twentieth. If there are
            several, a tenth of the training images is held out, to choose one for each VAE.
        draws: Codes drawn for each test image.
        folder: Folder for the figure.
    """
    origin = getattr(sources, source)()
    training, test = (sources.stacked(part).flatten(1).float() for part in origin.load())
    normal = Architecture(training.shape[1], origin.bins, code_dim, hidden)
    flow = normal._replace(blocks=blocks, posterior_blocks=posterior_blocks)
    gains = []
    for seed in seeds:
        bounds, vaes, trainings = {}, {}, {}
        for name, architecture in (("normal", normal), ("flow", flow)):
            vaes[name], trainings[name] = best(
                architecture,
                training,
                budget=Budget(steps, seconds),
                batch_size=batch_size,
                learning_rates=learning_rates,
                draws=draws,
                seed=seed,
            )
            bounds[name] = vaes[name].elbo(test, draws)
        gains.append(bounds["flow"] - bounds["normal"])
        print(
            f"seed {seed}: normal {with_error(bounds['normal'])}, flow "
            f"{with_error(bounds['flow'])}, gain {with_error(gains[-1])} nats",
            flush=True,
        )
        for name, found in trainings.items():
            print(
                f"  {name}: {found.steps} steps in {found.seconds:.0f} s, learning rate "
                f"{found.learning_rate:g}",
                flush=True,
            )
    if len(gains) > 1:
        print(f"gain over seeds: {with_error(torch.stack(gains).mean(1))} nats")
    draw(vaes, test, origin, folder / "vae_prior.png")


def draw(vaes: dict[str, VAE], test: Tensor, origin: sources.Source, path: Path) -> None:
    """Draw test images beside samples of both models."""
    rows = {"test images": test[:100] / (origin.bins - 1)}
    rows |= {f"{name} prior": vae.draw(100) for name, vae in vaes.items()}
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
    for axis, (title, images) in zip(axes, rows.items(), strict=True):
        draw_grid(axis, images, origin.event_shape[1:])
        axis.set_title(title)
    save_figure(figure, path)


if __name__ == "__main__":
    command_line(main)
