"""Draw the marginal of a source's images, and the map that makes it normal.

python -m examples.images.draw_marginal
python -m examples.images.draw_marginal --source examples.images.sources.Digits
"""

import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from examples.images.data import ImageData
from examples.images.marginals import fit_marginals
from examples.images.run_errors import SetupError
from examples.images.sources import Averaged, FashionMnist, Source
from examples.images.storage import check_writable
from examples.parsing import command_line
from pyro_resflow.transforms import Logit, MarginalGaussianization, UniformDequantization

BARS = 60
"""Bars of the histograms of mapped pixels."""


def main(
    source: Source | None = None, alpha: float = 0.05, output: Path = Path("runs/marginal.png")
) -> None:
    """Draw the histogram of the pixels, the map, and the mapped pixels, beside those of a logit.

    Args:
        source: The images; by default Fashion-MNIST at 14x14.
        alpha: Margin of the logit.
        output: File of the picture.
    """
    check_writable("output", output.parent)
    torch.manual_seed(0)
    data = ImageData(source if source is not None else Averaged(FashionMnist()))
    data.setup()
    gaussianize = MarginalGaussianization(data.bins)
    fit_marginals(gaussianize, data)
    images = data.initial_images()
    v = UniformDequantization(data.bins).distribution(images).sample()
    marginal_figure(gaussianize, Logit(alpha), v).savefig(output, dpi=120)
    print(f"wrote {output}")


def marginal_figure(gaussianize: MarginalGaussianization, logit: Logit, v: torch.Tensor) -> Figure:
    """Show a pooled marginal, the map, and dequantized images before and after.

    Args:
        gaussianize: The map.
        logit: Another map, to compare.
        v: Dequantized images.
    """
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    counts, maps, *mapped = figure.subplots(1, 4)
    counts.hist(v.flatten().numpy(), gaussianize.bins, range=(0, 1), density=True, log=True)
    counts.set(title="pixels", xlabel="x", ylabel="density")
    x = torch.linspace(0, 1, 2001).reshape(-1, 1, 1, 1)
    for transform, title in ((gaussianize, "marginal"), (logit, f"logit, alpha {logit.alpha:g}")):
        maps.plot(x.flatten(), transform(x).flatten(), label=title)
    maps.set(title="maps", xlabel="x", ylabel="y")
    maps.legend()
    normal = torch.linspace(-4, 4, 200)
    density = (-0.5 * normal**2).exp() / math.sqrt(2 * math.pi)
    titles = ("after the marginal's map", "after the logit, standardised")
    for axis, transform, title in zip(mapped, (gaussianize, logit), titles, strict=True):
        y = transform(v).flatten()
        y = (y - y.mean()) / y.std()
        axis.hist(y.numpy(), BARS, range=(-4, 4), density=True)
        axis.plot(normal, density)
        axis.set(title=title, xlabel="y")
    return figure


if __name__ == "__main__":
    try:
        command_line(main)
    except SetupError as error:
        sys.exit(f"error: {error}")
