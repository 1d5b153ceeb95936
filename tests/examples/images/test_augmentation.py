"""Random changes of batches of images."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images.augmentation import InTurn, RandomFlip, RandomShift

ROW = torch.arange(5, dtype=torch.uint8)
PADDED = {
    "reflect": [2, 1, 0, 1, 2, 3, 4, 3, 2],
    "symmetric": [1, 0, 0, 1, 2, 3, 4, 4, 3],
    "nearest": [0, 0, 0, 1, 2, 3, 4, 4, 4],
}


def test_each_image_is_mirrored_by_itself():
    images = torch.arange(4000 * 3 * 2 * 2).reshape(4000, 3, 2, 2)
    changed = RandomFlip()(images)
    mirrored = (changed == images.flip(-1)).flatten(1).all(1)
    same = (changed == images).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert abs(int(mirrored.sum()) - 2000) < 5 * (4000 / 4) ** 0.5


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_all_or_no_images_are_mirrored(probability):
    images = torch.rand(7, 1, 2, 3)
    expected = images.flip(-1) if probability else images
    assert torch.equal(RandomFlip(probability)(images), expected)


@pytest.mark.parametrize("edges", PADDED)
def test_a_shift_crops_the_padded_image(edges):
    images = ROW.expand(500, 1, 5, 5)
    padded = torch.tensor(PADDED[edges], dtype=torch.uint8)
    crops = {tuple(padded[i : i + 5].tolist()) for i in range(5)}
    for axis in (-1, -2):
        batch = images if axis == -1 else images.mT.contiguous()
        shifted = RandomShift(2, edges)(batch)
        assert shifted.dtype == torch.uint8
        found = {tuple(row) for row in shifted.movedim(axis, -1).reshape(-1, 5).tolist()}
        assert found == crops


def test_channels_are_shifted_alike():
    image = torch.rand(20, 1, 6, 6)
    shifted = RandomShift(3)(image.expand(20, 3, 6, 6))
    assert torch.equal(shifted, shifted[:, :1].expand_as(shifted))


def test_augmentations_come_in_turn():
    images = torch.rand(3, 1, 2, 2)
    both = InTurn([RandomFlip(1.0), RandomFlip(1.0)])
    assert torch.equal(both(images), images)
    assert torch.equal(InTurn([RandomFlip(1.0)])(images), images.flip(-1))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="probability"):
        RandomFlip(1.5)
    with pytest.raises(ValueError, match="pixels: expected at least 1"):
        RandomShift(0)
    with pytest.raises(ValueError, match="expected fewer than the 4 pixels"):
        RandomShift(4)(torch.rand(1, 1, 4, 4))
