"""The contents of the pictures, read back from them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from matplotlib.figure import Figure

from examples.images import exploration, figures
from examples.images.task import HeldOut
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.transforms import initialize

PADDING = 4
CELL = 64 + PADDING


@pytest.fixture
def flow() -> ResidualFlow:
    flow = ResidualFlow((1, 4, 4), blocks=(1,), network=ConvBlock(4), end_blocks=0)
    initialize(flow, torch.rand(64, 1, 4, 4))
    return flow


def shown(figure: Figure, row: int) -> torch.Tensor:
    """The images of a row of axes, read back from the picture: shape (N, 4, 4)."""
    picture = torch.as_tensor(np.array(figure.axes[row].images[0].get_array()))[:, :, 0]
    cells = picture[PADDING:, PADDING:].unfold(0, 64, CELL).unfold(1, 64, CELL)
    return cells.flatten(0, 1)[:, ::16, ::16]


def test_small_images_are_enlarged_without_smoothing():
    images = torch.rand(6, 1, 4, 4)
    picture = figures.grid(images, columns=3)
    assert picture.shape == (3, 2 * CELL + PADDING, 3 * CELL + PADDING)
    second = picture[0, PADDING : PADDING + 64, PADDING + CELL : PADDING + CELL + 64]
    assert torch.equal(second, images[1, 0].repeat_interleave(16, 0).repeat_interleave(16, 1))


@pytest.mark.parametrize("channels", range(1, 6))
def test_images_of_any_number_of_channels_are_shown(channels):
    images = torch.rand(2, channels, 4, 4)
    seen = figures.visible(images)
    if channels in (1, 3):
        assert seen is images
    elif channels == 2:
        assert torch.equal(
            seen, torch.cat([images[:, :1], images[:, 1:]], -1).expand(-1, 3, -1, -1)
        )
    else:
        assert torch.equal(seen[..., :4], images[:, :3])  # the colours
        for place, channel in enumerate(range(3, channels), 1):
            part = seen[..., 4 * place : 4 * place + 4]
            assert torch.equal(part, images[:, channel : channel + 1].expand(-1, 3, -1, -1))
    assert figures.grid(images, 2).shape[0] == 3


def test_what_is_out_of_range_is_shown_at_its_end():
    picture = figures.grid(torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1), columns=2)
    assert set(picture.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("number", "columns"), [(2, 1), (16, 4), (10, 3)])
def test_a_square_of_images(number, columns):
    picture = figures.square(torch.rand(number, 3, 64, 64))
    assert picture.shape[-1] == columns * CELL + PADDING


def test_rows_of_an_interpolation_go_from_one_image_to_the_other(flow):
    first, second = torch.rand(2, 3, 1, 4, 4)
    cells = shown(figures.interpolation(flow, first, second, steps=4), 0).unflatten(0, (3, 4))
    torch.testing.assert_close(cells[:, 0], first[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(cells[:, -1], second[:, 0], atol=1e-5, rtol=0)
    expected = exploration.interpolate(flow, first, second, steps=4)[1, :, 0]
    torch.testing.assert_close(cells[:, 1], expected.clamp(0, 1), atol=1e-5, rtol=0)


def test_temperatures_have_a_row_each(flow):
    figure = figures.temperatures(flow, (0.0, 0.7), number=3)
    assert [axis.get_title("left") for axis in figure.axes] == ["temperature 0", "temperature 0.7"]
    cold, warm = shown(figure, 0), shown(figure, 1)
    mode = flow(torch.zeros(16)).detach()[0]
    torch.testing.assert_close(cold, mode.expand(3, 4, 4), atol=1e-5, rtol=0)
    assert warm.std(0).min() > 0


def test_reconstructions_say_how_far_off_they_are(flow):
    images = torch.randint(0, 256, (3, 1, 4, 4))
    figure = figures.reconstructions(flow, images, 256)
    titles = [axis.get_title("left") for axis in figure.axes]
    result = exploration.reconstruct(flow, (images + 0.5) / 256)
    assert f"maximum of {result.error.max():.1e}" in titles[2]
    assert "another grey level: 0 of 48" in titles[2]
    torch.testing.assert_close(shown(figure, 0), (images[:, 0] + 0.5) / 256)
    torch.testing.assert_close(shown(figure, 1), shown(figure, 0), atol=1e-4, rtol=0)
    assert shown(figure, 2).max() == 1


def test_the_ends_of_a_ranking_are_shown():
    images = torch.arange(0, 250, 50).reshape(5, 1, 1, 1).expand(5, 1, 4, 4)
    distribution = SimpleNamespace(bits_per_dim=lambda x: -x[:, 0, 0, 0].double(), bins=256)
    figure = figures.ranking(distribution, images, number=2)
    assert figure.axes[0].get_title("left") == "highest likelihood: -200.00 to -150.00 bits/dim"
    assert figure.axes[1].get_title("left") == "lowest likelihood: -50.00 to 0.00 bits/dim"
    levels = [(255 * shown(figure, row)[:, 0, 0]).round().int().tolist() for row in (0, 1)]
    assert levels == [[200, 150], [50, 0]]


def test_a_ranking_of_few_images_shows_them_all():
    images = torch.arange(2).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    distribution = SimpleNamespace(bits_per_dim=lambda x: x[:, 0, 0, 0].double(), bins=256)
    assert shown(figures.ranking(distribution, images, number=10), 1).shape[0] == 2


def test_a_learning_curve_is_read_from_the_log(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as log:
        for step in (10, 20):
            log.add_scalar("bits/validation", 3.0 - step / 10, step)
    axis = figures.learning_curve(tmp_path, HeldOut(1.5, 0.1, 10)).axes[0]
    curve, test = axis.lines
    assert curve.get_label() == "validation"
    assert curve.get_xydata().tolist() == [[10, 2], [20, 1]]
    assert test.get_ydata() == [1.5, 1.5]
