"""Marginals of input maps, set from the training images."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from torch.utils.data import TensorDataset

from examples.images import data as image_data
from examples.images.data import ImageData
from examples.images.marginals import fit_marginals
from examples.images.run_errors import SetupError
from examples.images.sources import Digits, Portion, Source
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.transforms import MarginalGaussianization
from pyro_resflow.transforms.normalization import marginal_gaussianization
from pyro_resflow.transforms.normalization.marginal_gaussianization import MARGIN


class SixteenBits(Source):
    """Images of 65,536 grey levels, which torch.uint16 just holds."""

    event_shape = (1, 2, 2)
    bins = 65_536

    def load(self) -> tuple[Portion, Portion]:
        levels = torch.arange(80 * 4).reshape(80, 1, 2, 2) * 205
        images = levels.to(torch.uint16)
        return TensorDataset(images[:70]), TensorDataset(images[70:])


def ready(source: Source) -> ImageData:
    data = ImageData(source, evaluation_batch_size=10)
    data.setup()
    return data


def flow_of(bins: int, shape: tuple[int, int, int]) -> ResidualFlow:
    return ResidualFlow(
        shape,
        (1,),
        network=ConvBlock(4),
        end_blocks=0,
        input_map=MarginalGaussianization(bins),
    )


def shares(flow: ResidualFlow) -> torch.Tensor:
    return flow.encoder.parts[0].logits.softmax(1)[0]


@pytest.fixture
def half_counted(monkeypatch) -> None:
    """Mix all histograms with an equal share of the uniform density."""
    monkeypatch.setattr(marginal_gaussianization, "SHARES", (0.5,))


def mixed(counts: torch.Tensor) -> torch.Tensor:
    """The masses of the bins by counts, each with 1 added, and by the uniform density."""
    return 0.5 * (counts + 1) / (counts + 1).sum() + 0.5 * (1 - 2 * MARGIN) / len(counts)


def test_all_training_images_are_counted(half_counted):
    data, flow = ready(Digits()), flow_of(17, (1, 8, 8))
    fit_marginals(flow, data)
    # 1,293 images make 129 whole batches of 10; the last 3 images of the order are left out
    assert sum(len(batch) for batch in data.marginal_images()) == 1290
    counts = torch.bincount(torch.cat(data.marginal_images()).flatten().long(), minlength=17)
    torch.testing.assert_close(shares(flow)[1:-1], mixed(counts))
    assert flow.encoder.parts[0].initialized


def test_no_more_images_than_a_histogram_needs(monkeypatch):
    monkeypatch.setattr(image_data, "MARGINAL_VALUES", 64 * 35)
    assert [len(batch) for batch in ready(Digits()).marginal_images()] == [10, 10, 10]


@pytest.mark.parametrize("bins", [256, 65_536])
def test_levels_of_16_bits_are_counted(bins, half_counted):
    data, flow = ready(SixteenBits()), flow_of(bins, (1, 2, 2))
    fit_marginals(flow, data)
    levels = torch.cat(data.marginal_images()).long().flatten() // (65_536 // bins)
    counts = torch.bincount(levels, minlength=bins)
    torch.testing.assert_close(shares(flow)[1:-1], mixed(counts), rtol=1e-4, atol=1e-8)


def test_a_marginal_that_is_set_stays():
    flow = flow_of(17, (1, 8, 8))
    flow.encoder.parts[0].fit(torch.rand(50, 1, 8, 8))
    before = shares(flow)
    fit_marginals(flow, ready(Digits()))
    assert torch.equal(shares(flow), before)


@pytest.mark.parametrize("bins", [256, 34])  # 34 would leave every second bin empty
def test_bins_between_the_grey_levels_are_named(bins):
    with pytest.raises(SetupError, match=rf"input_map.init_args.bins {bins}: expected .* 17 grey"):
        fit_marginals(flow_of(bins, (1, 8, 8)), ready(Digits()))
