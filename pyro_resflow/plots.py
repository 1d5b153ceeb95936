"""Plots of flows in the plane: densities, samples, warped grids; and learning curves.

They need matplotlib (``pip install 'pyro-resflow[plots]'``) and an explicit import,
``from pyro_resflow import plots``. Every function draws on the axes ``ax``, by default
matplotlib's current ones, and returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform

from .arguments import checked
from .extras import extra
from .nn import DataInitialized
from .transforms import is_deterministic
from .transforms.core.evaluation import value
from .transforms.core.inside import inside

with extra("plots"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection

Limits = tuple[float, float]

CELLS = 200
"""Number of cells along each side of a density plot: finer than a figure of 3 inches shows."""

POINTS_PER_LINE = 200
"""Number of points on each line of a grid: enough for a curved line to look smooth."""

FAINT = 0.3
"""Opacity of single losses behind their moving average."""


@checked()
@torch.no_grad()
def density_2d(
    density: dist.TorchDistribution,
    *,
    xlim: Sequence[float] = (-4.0, 4.0),
    ylim: Sequence[float] = (-4.0, 4.0),
    cells: int = CELLS,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw a density in the plane as colours.

    Args:
        density: a distribution of event shape ``(2,)`` and empty batch shape.
        xlim: range of the first coordinate.
        ylim: range of the second coordinate.
        cells: number of cells along each side; the colour of a cell is the density at its centre.
        ax: the axes to draw on; default matplotlib's current ones.
        **style: further arguments of matplotlib's ``pcolormesh``.

    Returns:
        The axes.

    Raises:
        ValueError: for a wrong shape, a flow that is not initialised (the plotted points must not
            initialise it), or a log-density that is random or nan.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_resflow import plots
        >>> noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> plots.density_2d(noise, xlim=(-3, 3), cells=50).get_xlim() == (-3, 3)
        True
    """
    _check_density(density)
    first, second = (torch.linspace(*_limits(*each), cells + 1) for each in _named(xlim, ylim))
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in (first, second)]
    points = torch.cartesian_prod(*centres).to(_like(density))
    height = density.log_prob(points).exp().reshape(cells, cells).mT
    if bool(height.isnan().any()):
        raise ValueError(
            f"density: its log_prob is nan at {int(height.isnan().sum())} of {height.numel()} "
            "points of the plot; choose xlim and ylim inside its support, and check its "
            "parameters for nan."
        )
    ax = _axes(ax)
    ax.pcolormesh(first.numpy(), second.numpy(), height.numpy(force=True), **style)
    ax.set_aspect("equal")
    return ax


@checked()
def samples(draws: Tensor, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw points in the plane as small dots.

    Args:
        draws: shape ``(*batch, 2)``.
        ax: the axes to draw on; default matplotlib's current ones.
        **style: further arguments of matplotlib's ``scatter``.

    Returns:
        The axes.

    Raises:
        ValueError: if the points do not have two coordinates.

    Example:
        >>> import torch
        >>> from pyro_resflow import plots
        >>> len(plots.samples(torch.randn(100, 2)).collections[-1].get_offsets())
        100
    """
    if draws.dim() < 1 or draws.shape[-1] != 2:
        raise ValueError(
            f"draws: expected points in the plane, shape (*batch, 2), got {tuple(draws.shape)}."
        )
    first, second = draws.reshape(-1, 2).T.numpy(force=True)
    ax = _axes(ax)
    ax.scatter(first, second, **{"s": 2, "linewidths": 0, **style})
    ax.set_aspect("equal")
    return ax


@checked()
@torch.no_grad()
def warped_grid(
    transform: Transform,
    *,
    xlim: Sequence[float] = (-3.0, 3.0),
    ylim: Sequence[float] = (-3.0, 3.0),
    lines: int = 13,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw the image of a rectangular grid under a transform of the plane.

    Lines of constant first coordinate have one colour, lines of constant second coordinate
    another. If the transform is a bijection, lines of one colour never cross.

    Args:
        transform: a transform of the plane, for instance a flow from noise to data.
        xlim: range of the first coordinate.
        ylim: range of the second coordinate.
        lines: number of lines in each direction, at least two.
        ax: the axes to draw on; default matplotlib's current ones.
        **style: further arguments of matplotlib's ``LineCollection``.

    Returns:
        The axes.

    Raises:
        ValueError: for fewer than two lines, or if the transform's values are not points in the
            plane.

    Example:
        >>> from pyro_resflow import plots, residual_flow
        >>> len(plots.warped_grid(residual_flow(2), lines=5).collections[-1].get_segments())
        5
    """
    if lines < 2:
        raise ValueError(f"lines: expected at least two in each direction, got {lines}.")
    (left, right), (low, high) = (_limits(*each) for each in _named(xlim, ylim))
    upright = _grid(torch.linspace(left, right, lines), torch.linspace(low, high, POINTS_PER_LINE))
    level = _grid(torch.linspace(low, high, lines), torch.linspace(left, right, POINTS_PER_LINE))
    ax = _axes(ax)
    for points, colour in ((upright, "tab:blue"), (level.flip(-1), "tab:orange")):
        image = value(transform, points.to(_like(transform)))
        if image.shape != points.shape:
            raise ValueError(
                f"transform: expected a map of the plane, got values of shape "
                f"{tuple(image.shape)} for points of shape {tuple(points.shape)}."
            )
        curves = LineCollection(
            list(image.numpy(force=True)), **{"colors": colour, "linewidths": 0.8, **style}
        )
        ax.add_collection(curves)
    ax.autoscale_view()
    ax.set_aspect("equal")
    return ax


@checked()
def learning_curve(
    losses: Sequence[float] | Mapping[str, Sequence[float]],
    *,
    window: int = 1,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw losses against the step.

    Args:
        losses: one loss for each step, or several such sequences by name.
        window: number of steps of the moving average. If it is above 1, the single losses are
            drawn faintly behind it.
        ax: the axes to draw on; default matplotlib's current ones.
        **style: further arguments of matplotlib's ``plot``.

    Returns:
        The axes.

    Raises:
        ValueError: for a sequence shorter than the window.

    Example:
        >>> from pyro_resflow import plots
        >>> plots.learning_curve([3.0, 2.0, 1.0], window=2).lines[-2].get_ydata().tolist()
        [2.5, 1.5]
    """
    curves = losses if isinstance(losses, Mapping) else {"": losses}
    ax = _axes(ax)
    for name, values in curves.items():
        curve = torch.as_tensor(values, dtype=torch.float64)
        if curve.dim() != 1 or len(curve) < window:
            raise ValueError(
                f"losses: expected at least window={window} numbers{f' of {name}' * bool(name)}, "
                f"got shape {tuple(curve.shape)}."
            )
        average = curve.unfold(0, window, 1).mean(-1)
        steps = torch.arange(window, len(curve) + 1)
        (line,) = ax.plot(steps.numpy(), average.numpy(), label=name, **style)
        if window > 1:
            every = torch.arange(1, len(curve) + 1)
            ax.plot(every.numpy(), curve.numpy(), color=line.get_color(), alpha=FAINT, zorder=1)
    ax.set(xlabel="step", ylabel="loss")
    if any(curves):
        ax.legend()
    return ax


def _axes(ax: Axes | None) -> Axes:
    return ax if ax is not None else plt.gca()


def _named(xlim: Sequence[float], ylim: Sequence[float]) -> list[tuple[str, Sequence[float]]]:
    return [("xlim", xlim), ("ylim", ylim)]


def _limits(name: str, limits: Sequence[float]) -> Limits:
    """Check a pair of limits and return it as floats."""
    if len(limits) != 2 or not float(limits[0]) < float(limits[1]):
        raise ValueError(f"{name}: expected two increasing numbers, got {tuple(limits)}.")
    return float(limits[0]), float(limits[1])


def _grid(fixed: Tensor, running: Tensor) -> Tensor:
    """Points on lines of fixed first coordinates, shape ``(lines, points, 2)``."""
    return torch.stack(torch.meshgrid(fixed, running, indexing="ij"), dim=-1)


def _like(flow: object) -> Tensor:
    """A tensor with the dtype and device of a flow's parameters, or torch's defaults."""
    for part in inside(flow):
        if isinstance(part, nn.Module):
            for parameter in part.parameters():
                return parameter
    return torch.empty(())


def _check_density(density: dist.TorchDistribution) -> None:
    """Raise unless a density can be drawn without noise and without being initialised by it."""
    if density.event_shape != (2,) or density.batch_shape != ():
        raise ValueError(
            "density: expected a distribution of event shape (2,) and batch shape (), got "
            f"{tuple(density.event_shape)} and {tuple(density.batch_shape)}."
        )
    for part in inside(density):
        if isinstance(part, DataInitialized) and not bool(part.initialized):
            raise ValueError(
                f"density: its {type(part).__name__} is not initialised yet, and the points of "
                "the plot must not initialise it; call "
                "pyro_resflow.transforms.initialize(flow, data), or train it first."
            )
    if not is_deterministic(density):
        raise ValueError(
            "density: its log_prob draws new noise at every call, which makes exp(log_prob) too "
            "high on average; call pyro_resflow.transforms.set_logdet(flow, logdet.Exact()), and "
            "eval() if the flow has batch norms or dropout."
        )
