"""A variational autoencoder with a residual flow for its prior, against a standard normal one.

The two differ in the prior of the code alone: networks, their first weights, the order of the
images and the number of steps are the same. What is printed is the evidence lower bound of test
images and its gain by the flow, image by image, for several seeds. The figure shows digits that
both have drawn.

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
from examples.training import slowing_adam, train
from pyro_resflow import residual_flow


class Prior(nn.Module):
    """The distribution of a code: standard normal noise, through transforms if there are any.

    Args:
        code_dim: size of the code.
        transforms: from noise to codes.
    """

    def __init__(self, code_dim: int, transforms: Sequence[dist.TransformModule] = ()) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.transforms = nn.ModuleList(transforms)

    def forward(self) -> dist.TorchDistribution:
        """The distribution, of event shape ``(code_dim,)``."""
        noise = dist.Normal(torch.zeros(self.code_dim), torch.ones(self.code_dim)).to_event(1)
        return dist.TransformedDistribution(noise, list(self.transforms))


class VAE(nn.Module):
    """Images of grey levels 0 .. bins - 1, a binomial for each pixel, given a normal code.

    Args:
        pixels: number of pixels.
        bins: number of grey levels.
        hidden: size of the hidden layer of encoder and decoder.
        prior: of the code.
    """

    def __init__(self, pixels: int, bins: int, *, hidden: int, prior: Prior) -> None:
        super().__init__()
        self.bins = bins
        code_dim = prior.code_dim
        self.encoder = DenseNN(pixels, [hidden], [code_dim, code_dim], nonlinearity=nn.SiLU())
        self.decoder = DenseNN(code_dim, [hidden], [pixels], nonlinearity=nn.SiLU())
        self.prior = prior

    def model(self, images: Tensor) -> None:
        """Codes of the prior, and images given them; images have shape ``(n, pixels)``."""
        pyro.module("vae", self)
        with pyro.plate("images", len(images)):
            code = pyro.sample("code", self.prior())
            pyro.sample("pixels", self.likelihood(code), obs=images)

    def guide(self, images: Tensor) -> None:
        """Codes given images of shape ``(n, pixels)``."""
        with pyro.plate("images", len(images)):
            mean, log_std = self.encoder(images / (self.bins - 1))
            pyro.sample("code", dist.Normal(mean, log_std.exp()).to_event(1))

    def likelihood(self, code: Tensor) -> dist.TorchDistribution:
        """The distribution of images given codes."""
        return dist.Binomial(self.bins - 1, logits=self.decoder(code)).to_event(1)

    @torch.no_grad()
    def elbo(self, images: Tensor, draws: int) -> Tensor:
        """The evidence lower bound of each image in nats, a mean over draws of its code."""
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
        """Mean images of n codes of the prior, on [0, 1], shape ``(n, pixels)``."""
        code = self.prior().sample((n,))
        return self.likelihood(code).mean / (self.bins - 1)


def build(pixels: int, bins: int, *, code_dim: int, hidden: int, blocks: int, seed: int) -> VAE:
    """A VAE whose prior is a flow of so many blocks, standard normal for none.

    Encoder and decoder have the same first weights whatever the prior. Codes are scored at every
    step and drawn for pictures only, so density is the flow's fast direction. Its log-determinant
    is estimated without bias: so is the bound.
    """
    pyro.set_rng_seed(seed)
    vae = VAE(pixels, bins, hidden=hidden, prior=Prior(code_dim))
    if blocks:
        vae.prior = Prior(code_dim, [residual_flow(code_dim, blocks, fast="density")])
    return vae


def fit(
    vae: VAE, images: Tensor, *, steps: int, batch_size: int, learning_rate: float, seed: int
) -> None:
    """Raise the evidence lower bound of batches of images, whose order the seed alone decides."""
    pyro.clear_param_store()
    order = torch.Generator().manual_seed(seed)
    chosen = (torch.randint(len(images), (batch_size,), generator=order) for _ in range(steps))
    train(
        poutine.scale(vae.model, 1 / batch_size),
        poutine.scale(vae.guide, 1 / batch_size),
        slowing_adam(learning_rate, steps),
        ((images[rows],) for rows in chosen),
        steps=steps,
        description=f"seed {seed}",
    )


def with_error(values: Tensor) -> str:
    """Mean and its standard error."""
    return f"{values.mean():.3f} +- {values.std() / len(values) ** 0.5:.3f}"


def draw_grid(axis: Axes, images: Tensor, shape: Sequence[int]) -> None:
    """A square of images of shape ``(rows^2, pixels)`` on [0, 1]."""
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
    """Train a VAE with each prior for each seed, compare test bounds, draw images of both.

    Args:
        source: where the images come from, see ``examples/images/sources``.
        seeds: each decides first weights, order of the images and noise.
        steps: training steps.
        code_dim: size of the code.
        hidden: size of the hidden layers of encoder and decoder.
        blocks: residual blocks of the flow.
        batch_size: images at each step.
        learning_rate: of Adam at the start; it falls to a twentieth.
        draws: codes drawn for each test image.
        folder: where the figure is written.
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
    """Test images beside images drawn from both models."""
    rows = {"test images": test[:100] / (origin.bins - 1)}
    rows |= {f"{name} prior": vae.draw(100) for name, vae in vaes.items()}
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
    for axis, (title, images) in zip(axes, rows.items(), strict=True):
        draw_grid(axis, images, origin.event_shape[1:])
        axis.set_title(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"wrote {path}")


if __name__ == "__main__":
    command_line(main)
