"""A variational autoencoder with a residual flow as its prior, compared with a normal prior.

The two differ only in the prior of the code: the networks, their initial weights, the order of the
images and the number of steps are the same. The program prints the evidence lower bound of the
test images and the flow's gain, averaged over images, for several seeds. The figure shows samples
of both.

    python -m examples.vae_prior
    python -m examples.vae_prior --seeds '[0]' --steps 500
    python -m examples.vae_prior --source FashionMnist --hidden 400 --code_dim 16 --steps 20000
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from pyro import poutine
from pyro.nn import DenseNN
from torch import Tensor, nn
from torchvision.utils import make_grid

from examples.images import sources
from examples.parsing import command_line
from examples.plotting import save_figure
from examples.training import decaying_adam, train
from pyro_resflow import residual_flow


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


class VAE(nn.Module):
    """A VAE of images with grey levels 0 .. bins - 1, with a binomial for each pixel.

    Args:
        pixels: Number of pixels.
        bins: Number of grey levels.
        hidden: Size of the hidden layer of encoder and decoder.
        prior: The prior of the code.
    """

    def __init__(self, pixels: int, bins: int, *, hidden: int, prior: Prior) -> None:
        super().__init__()
        self.bins = bins
        code_dim = prior.code_dim
        self.encoder = DenseNN(pixels, [hidden], [code_dim, code_dim], nonlinearity=nn.SiLU())
        self.decoder = DenseNN(code_dim, [hidden], [pixels], nonlinearity=nn.SiLU())
        self.prior = prior

    def model(self, images: Tensor) -> None:
        """Sample codes from the prior, and images of shape ``(n, pixels)`` given the codes."""
        pyro.module("vae", self)
        with pyro.plate("images", len(images)):
            code = pyro.sample("code", self.prior())
            pyro.sample("pixels", self.likelihood(code), obs=images)

    def guide(self, images: Tensor) -> None:
        """Sample codes given images of shape ``(n, pixels)``."""
        with pyro.plate("images", len(images)):
            mean, log_std = self.encoder(images / (self.bins - 1))
            pyro.sample("code", dist.Normal(mean, log_std.exp()).to_event(1))

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


def build(pixels: int, bins: int, *, code_dim: int, hidden: int, blocks: int, seed: int) -> VAE:
    """Build a VAE whose prior is a flow with this many blocks; standard normal for 0.

    Encoder and decoder have the same initial weights for every prior. Training scores codes at
    every step and draws them for pictures only, so the flow's density takes one pass. The
    log-determinant's estimate is unbiased, and therefore the bound's estimate too.
    """
    pyro.set_rng_seed(seed)
    vae = VAE(pixels, bins, hidden=hidden, prior=Prior(code_dim))
    if blocks:
        vae.prior = Prior(code_dim, [residual_flow(code_dim, blocks, fast="density")])
    return vae


def fit(
    vae: VAE, images: Tensor, *, steps: int, batch_size: int, learning_rate: float, seed: int
) -> None:
    """Maximise the evidence lower bound over batches; the seed alone decides their order."""
    pyro.clear_param_store()
    order = torch.Generator().manual_seed(seed)
    chosen = (torch.randint(len(images), (batch_size,), generator=order) for _ in range(steps))
    train(
        poutine.scale(vae.model, 1 / batch_size),
        poutine.scale(vae.guide, 1 / batch_size),
        decaying_adam(learning_rate, steps),
        ((images[rows],) for rows in chosen),
        steps=steps,
        description=f"seed {seed}",
    )


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
    code_dim: int = 8,
    hidden: int = 128,
    blocks: int = 4,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    draws: int = 20,
    folder: Path = Path("runs/vae_prior"),
) -> None:
    """Train a VAE with each prior and seed, compare the test bounds, draw images of both.

    Args:
        source: Where the images come from, see ``examples/images/sources``.
        seeds: Each seed decides the initial weights, the order of the images and the noise.
        steps: Training steps.
        code_dim: Size of the code.
        hidden: Size of the hidden layers of encoder and decoder.
        blocks: Residual blocks of the flow.
        batch_size: Images at each step.
        learning_rate: Initial learning rate of Adam; it falls to a twentieth.
        draws: Codes drawn for each test image.
        folder: Folder for the figure.
    """
    origin = getattr(sources, source)()
    training, test = (sources.stacked(part).flatten(1).float() for part in origin.load())
    gains = []
    for seed in seeds:
        bounds, vaes = {}, {}
        for name, number in (("normal", 0), ("flow", blocks)):
            vae = build(
                training.shape[1],
                origin.bins,
                code_dim=code_dim,
                hidden=hidden,
                blocks=number,
                seed=seed,
            )
            fit(
                vae,
                training,
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                seed=seed,
            )
            bounds[name], vaes[name] = vae.elbo(test, draws), vae
        gains.append(bounds["flow"] - bounds["normal"])
        print(
            f"seed {seed}: normal {with_error(bounds['normal'])}, flow "
            f"{with_error(bounds['flow'])}, gain {with_error(gains[-1])} nats",
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
