"""Pictures show the right numbers."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from torch.distributions import AffineTransform

from pyro_resflow.extras import MissingExtraError

pytest.importorskip("matplotlib")

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from pyro_resflow import plots, residual_flow
from pyro_resflow.logdet import Krylov

NOISE = dist.Normal(torch.zeros(2), 1.0).to_event(1)
SKEWED = dist.MultivariateNormal(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))


@pytest.fixture(autouse=True)
def ax() -> Iterator[Axes]:
    """Axes of a figure that no window shows."""
    matplotlib.use("agg")
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_every_cell_has_the_density_at_its_centre(ax: Axes) -> None:
    given = plots.density_2d(SKEWED, xlim=(-2, 4), ylim=(-3, 2), cells=30, ax=ax, cmap="Greys")
    assert given is ax
    (mesh,) = ax.collections
    corners = torch.as_tensor(mesh.get_coordinates())
    assert corners.shape == (31, 31, 2)
    assert corners[0, 0].tolist() == [-2, -3]
    assert corners[-1, -1].tolist() == pytest.approx([4, 2])
    centres = (corners[1:, 1:] + corners[:-1, :-1]) / 2
    exact = SKEWED.log_prob(centres.float()).exp()
    shown = torch.as_tensor(mesh.get_array()).reshape(30, 30)
    assert torch.allclose(shown, exact, atol=1e-6)
    cell = 6 / 30 * 5 / 30
    assert float(shown.sum()) * cell == pytest.approx(1, abs=0.01)
    assert mesh.get_cmap().name == "Greys"
    assert (ax.get_xlim(), ax.get_ylim(), ax.get_aspect()) == ((-2, 4), (-3, 2), 1)


def test_a_density_in_double_precision_on_the_current_axes(ax: Axes) -> None:
    flow = residual_flow(2, 1, [8]).double()
    base = dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1)
    assert plots.density_2d(dist.TransformedDistribution(base, [flow]), cells=5) is ax


def test_a_picture_initialises_no_flow() -> None:
    flow = residual_flow(2, 1, [8], fast="density")
    with pytest.raises(ValueError, match="density: its ActNorm is not initialised yet"):
        plots.density_2d(dist.TransformedDistribution(NOISE, [flow]))
    assert not any(part.initialized for part in flow.modules() if hasattr(part, "initialized"))


def test_a_random_log_density_is_refused() -> None:
    flow = residual_flow(2, 1, [8], logdet=Krylov())
    with pytest.raises(ValueError, match="density: its log_prob draws new noise at every call"):
        plots.density_2d(dist.TransformedDistribution(NOISE, [flow]))


def test_nan_is_refused() -> None:
    noise = dist.Normal(torch.zeros(2), 1.0, validate_args=False).to_event(1)
    positive = dist.TransformedDistribution(noise, [T.SoftplusTransform()], validate_args=False)
    with pytest.raises(ValueError, match="density: its log_prob is nan at 12 of 16 points"):
        plots.density_2d(positive, cells=4)


@pytest.mark.parametrize(
    "density",
    [dist.Normal(0.0, 1.0), NOISE.expand([3]), dist.Normal(torch.zeros(3), 1.0).to_event(1)],
)
def test_other_shapes_are_refused(density: dist.TorchDistribution) -> None:
    with pytest.raises(ValueError, match=r"density: .* event shape \(2,\) and batch shape \(\)"):
        plots.density_2d(density)


@pytest.mark.parametrize("limits", [(1, 1), (2, 1), (1,), (0, math.nan)])
def test_limits_increase(limits: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ylim: expected two increasing numbers"):
        plots.density_2d(NOISE, ylim=limits)
    with pytest.raises(ValueError, match="xlim: expected two increasing numbers"):
        plots.warped_grid(T.ExpTransform(), xlim=limits)


def test_samples_are_dots_at_their_place(ax: Axes) -> None:
    draws = torch.randn(3, 5, 2, requires_grad=True)
    assert plots.samples(draws, color="red", s=7, ax=ax) is ax
    (dots,) = ax.collections
    assert torch.equal(torch.as_tensor(dots.get_offsets()).float(), draws.detach().reshape(-1, 2))
    assert dots.get_sizes().tolist() == [7]
    assert tuple(dots.get_facecolor()[0]) == to_rgba("red")


def test_points_of_other_dimensions_are_no_samples() -> None:
    for draws in (torch.zeros(2, 3), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="draws: expected points in the plane"):
            plots.samples(draws)


def test_the_grid_is_where_the_transform_takes_it(ax: Axes) -> None:
    transform = AffineTransform(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 3.0]), event_dim=1)
    assert plots.warped_grid(transform, xlim=(0, 1), ylim=(-1, 1), lines=3, ax=ax) is ax
    upright, level = ax.collections
    assert isinstance(upright, LineCollection)
    assert isinstance(level, LineCollection)
    for i, line in enumerate(upright.get_segments()):
        assert line[:, 0] == pytest.approx(1 + i)
        assert line[[0, -1], 1] == pytest.approx([-3, 3])
    for i, line in enumerate(level.get_segments()):
        assert line[:, 1] == pytest.approx(-3 + 3 * i)
        assert line[[0, -1], 0] == pytest.approx([1, 3])
    assert len(upright.get_segments()) == len(level.get_segments()) == 3
    assert ax.get_xlim()[0] < 1 < 3 < ax.get_xlim()[1]
    assert not (upright.get_colors() == level.get_colors()).all()


def test_a_grid_needs_lines_and_a_plane() -> None:
    with pytest.raises(ValueError, match="lines: expected at least two"):
        plots.warped_grid(T.ExpTransform(), lines=1)
    with pytest.raises(ValueError, match="transform: expected a map of the plane"):
        plots.warped_grid(T.StickBreakingTransform())


def test_a_learning_curve_is_the_moving_average_of_the_losses(ax: Axes) -> None:
    losses = [5.0, 3.0, 4.0, 0.0]
    assert plots.learning_curve(losses, window=2, ax=ax) is ax
    average, every = ax.lines
    assert average.get_xdata().tolist() == [2, 3, 4]
    assert average.get_ydata().tolist() == [4, 3.5, 2]
    assert every.get_xdata().tolist() == [1, 2, 3, 4]
    assert every.get_ydata().tolist() == losses
    assert every.get_color() == average.get_color()
    assert every.get_alpha() < 1
    assert ax.get_legend() is None


def test_learning_curves_have_their_names(ax: Axes) -> None:
    plots.learning_curve({"flow": [2.0, 1.0], "normal": torch.tensor([3.0, 2.5, 2.0])}, ax=ax)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[2, 1], [3, 2.5, 2]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["flow", "normal"]
    assert ax.get_xlabel() == "step"


def test_a_window_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"losses: expected at least window=3 numbers of flow"):
        plots.learning_curve({"flow": [1.0, 2.0]}, window=3)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pyro_resflow.plots")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pyro-resflow\[plots\]'"):
        __import__("pyro_resflow.plots")
