"""The trained models of the examples reach the scores on their cards."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from torchvision.io import read_image

from examples.images import sample, trained, weights
from examples.images.comparison.clock import score
from examples.images.sources import Averaged, Digits, FashionMnist, Source, stacked
from pyro_resflow.checkpoints import info

FOLDER = Path(trained.__file__).parent
FASHION_MNIST = FashionMnist()
SOURCES: dict[str, Source] = {
    "digits": Digits(),
    "fashion_mnist_14x14": Averaged(FASHION_MNIST),
    "fashion_mnist": FASHION_MNIST,
    "fashion_mnist_flow_plus_plus": FASHION_MNIST,
}
PIXELS = 200_000
"""Pixels to score: few large images take as long as many small ones."""


def test_every_model_is_tested_and_has_a_card():
    models = {path.parent.name for path in FOLDER.glob("*/flow.safetensors")}
    assert models == set(SOURCES)
    card = (FOLDER / "README.md").read_text()
    for name in models:
        assert f"## {name}\n" in card
        assert info(FOLDER / name / weights.FLOW).notes["result"] in card


@pytest.mark.parametrize("name", SOURCES)
def test_a_model_reaches_its_bits_per_dim(name):
    source = SOURCES[name]
    if "fashion" in name and not FASHION_MNIST.system_folder.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    task = weights.load(FOLDER / name)
    assert task.bins == source.bins
    _, test = source.load()
    images = stacked(test)[: PIXELS // math.prod(source.event_shape)]
    draws = torch.stack([score(task, images, 100, seed) for seed in range(2)])
    bits = draws.mean(0)
    said = info(FOLDER / name / weights.FLOW).notes["result"]
    mean, error = map(float, re.search(r"([\d.]+) ± ([\d.]+)", said).groups())
    if len(images) == len(test):  # the same images: what differs is the noise of both scores
        error = math.sqrt(2 * float(draws.var(0).mean()) / draws.numel())
    else:
        error = math.hypot(error, float(bits.std()) / len(images) ** 0.5)
    assert float(bits.mean()) == pytest.approx(mean, abs=4 * error)


@pytest.mark.parametrize("name", SOURCES)
def test_a_model_draws_images(name, tmp_path, capsys):
    output = tmp_path / "samples.png"
    sample.main(FOLDER / name / weights.FLOW, number=4, output=output)
    assert "bits/dim" in capsys.readouterr().out
    drawn = read_image(str(output)).float() / 255
    assert drawn.std() > 0.1
