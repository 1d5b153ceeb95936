"""Batches of a source: how images are divided, labelled and augmented."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images.augmentation import RandomFlip
from examples.images.data import Batch, ImageData, images_of
from examples.images.sources import Digits, PhotoPatches, stacked


def ready(**settings) -> ImageData:
    data = ImageData(Digits(), **settings)
    data.setup()
    return data


def test_splits_are_disjoint_complete_and_the_same_every_time():
    def parts() -> list[torch.Tensor]:
        data = ready()
        portions = data.training_images, data.validation_images, data.test_images
        return [stacked(portion) for portion in portions]

    first, second = parts(), parts()
    assert [len(part) for part in first] == [1293, 144, 360]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    whole = torch.cat([stacked(portion) for portion in Digits().load()]).flatten(1).tolist()
    assert sorted(torch.cat(first).flatten(1).tolist()) == sorted(whole)


def test_batches_are_images_alone_or_with_their_labels():
    images = next(iter(ready().test_dataloader()))
    again, labels = next(iter(ready(labels=True).test_dataloader()))
    assert torch.equal(images, again)
    assert torch.equal(images_of(images), images_of((again, labels)))
    portion = ready().test_images
    assert labels.tolist() == [int(portion[i][1]) for i in range(len(labels))]
    assert labels.dtype == torch.long


def test_labels_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="labels true: the images of PhotoPatches have no labels"):
        ImageData(PhotoPatches(), labels=True)


def test_shape_levels_and_classes_are_the_sources():
    data = ImageData(Digits())
    assert (data.event_shape, data.bins, data.classes) == ((1, 8, 8), 17, 10)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_only_training_batches_are_augmented(labels, training):
    data = ready(augmentation=RandomFlip(1.0), labels=labels)
    data.trainer = SimpleNamespace(training=training)
    batch: Batch = next(iter(data.test_dataloader()))
    changed = data.on_after_batch_transfer(batch, 0)
    expected = images_of(batch).flip(-1) if training else images_of(batch)
    assert torch.equal(images_of(changed), expected)
    if labels:
        assert torch.equal(changed[1], batch[1])


def test_the_last_incomplete_training_batch_is_dropped():
    sizes = {len(batch) for batch in ready(batch_size=200).train_dataloader()}
    assert sizes == {200}
    assert len(next(iter(ready(batch_size=5000).train_dataloader()))) == 1293


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_bad_validation_fraction_is_refused(fraction):
    with pytest.raises(ValueError, match="validation_fraction: expected a number between 0 and 1"):
        ImageData(Digits(), validation_fraction=fraction)


@pytest.mark.parametrize("size", [1, 2, 100, 1000])
def test_initial_images_do_not_depend_on_the_evaluations_batches(size):
    usual = ready().initial_images()
    assert len(usual) == 256
    assert torch.equal(ready(evaluation_batch_size=size).initial_images(), usual)


@pytest.mark.parametrize(("side", "number"), [(8, 256), (32, 256), (64, 64), (256, 16)])
def test_fewer_large_images_initialise(side, number):
    data = ready()
    data.source = SimpleNamespace(event_shape=(3, side, side))
    assert len(data.initial_images()) == number
