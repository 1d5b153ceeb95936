"""Faults of a source are named before training begins."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from torch.utils.data import TensorDataset

from examples.images.data import ImageData
from examples.images.run_errors import SetupError
from examples.images.sources import Digits, Portion, Source


class Own(Source):
    """Eight images of 1x2x2, as given."""

    event_shape = (1, 2, 2)
    bins = 16

    def __init__(self, training: Portion, test: Portion | None = None) -> None:
        self.portions = training, test if test is not None else portion()

    def load(self) -> tuple[Portion, Portion]:
        return self.portions


def portion(*shape: int, dtype: torch.dtype = torch.uint8, value: int = 15) -> TensorDataset:
    return TensorDataset(torch.full((8, *(shape or (1, 2, 2))), value, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_of_the_right_shape_pass(dtype):
    data = ImageData(Own(portion(dtype=dtype)))
    data.setup()
    assert len(data.training_images) == 7


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (portion(dtype=torch.float32), "images of float32"),
        (portion(2, 2), r"an image of shape \(2, 2\), not event_shape \(1, 2, 2\)"),
        (portion(2, 2, 1), r"an image of shape \(2, 2, 1\)"),
        (portion(value=16), "pixels from 16 to 16, but bins is 16"),
        (portion(dtype=torch.int64, value=-1), "pixels from -1 to -1"),
        (torch.zeros(8, 1, 2, 2, dtype=torch.uint8), "items of type Tensor"),
    ],
)
@pytest.mark.parametrize("place", ["training", "test"])
def test_a_wrong_kind_of_images_is_named_with_the_right_one(wrong, fault, place):
    source = Own(wrong) if place == "training" else Own(portion(), wrong)
    message = rf"data\.source Own: the {place} portion has {fault}.*torch\.uint8.*\(C, H, W\)"
    with pytest.raises(SetupError, match=message):
        ImageData(source).setup()


def test_a_single_wrong_image_is_found_in_a_small_portion():
    images = torch.zeros(60, 1, 2, 2, dtype=torch.uint8)
    images[59] = 200
    with pytest.raises(SetupError, match=r"from 200 to 200, but bins is 16 \(item 59\)"):
        ImageData(Own(TensorDataset(images))).setup()


def test_looking_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    ImageData(Digits()).setup()
    assert torch.equal(torch.rand(3), expected)


def test_an_empty_portion_is_named():
    with pytest.raises(SetupError, match="the training portion is empty"):
        ImageData(Own(TensorDataset(torch.zeros(0, 1, 2, 2, dtype=torch.uint8)))).setup()


def test_images_have_to_be_left_to_train_on():
    with pytest.raises(SetupError, match="leaves 0 of 1 images for training"):
        ImageData(Own(TensorDataset(torch.zeros(1, 1, 2, 2, dtype=torch.uint8)))).setup()


@pytest.mark.parametrize(
    ("name", "value"), [("event_shape", (28, 28)), ("event_shape", None), ("bins", 0)]
)
def test_a_source_says_what_its_images_are(name, value):
    source = Own(portion())
    setattr(source, name, value)
    with pytest.raises(SetupError, match=f"data.source Own: {name}: expected"):
        ImageData(source)
