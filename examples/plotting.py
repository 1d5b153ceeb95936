"""Figures: a density as colours on a square, and a figure written to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

CELLS = 200
"""Cells of a density along each side."""


@torch.no_grad()
def draw_density(
    axis: Axes,
    density: dist.TorchDistribution,
    half_width: float,
    centre: Tensor | None = None,
    **style: Any,
) -> None:
    """Draw a density in the plane as colours on a square.

    Args:
        axis: The axis to draw on.
        density: A distribution of event shape ``(2,)``.
        half_width: Half the side of the square.
        centre: Centre of the square, shape ``(2,)``; by default the origin.
        **style: Further arguments of matplotlib's ``pcolormesh``.
    """
    centre = centre if centre is not None else torch.zeros(2)
    edges = torch.linspace(-half_width, half_width, CELLS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    points = centre + torch.cartesian_prod(middles, middles)
    height = density.log_prob(points).exp().reshape(CELLS, CELLS)
    columns, rows = (centre[:, None] + edges).numpy()
    axis.pcolormesh(columns, rows, height.T.numpy(), **style)


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure to a file, close it and print the path.

    Args:
        figure: The figure.
        path: The file; its folder is created if it is missing.
        dpi: Resolution in dots per inch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    print(f"wrote {path}")
