"""The classification task: the network's input, and a run."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from torch import nn

from examples.images.classification import Classification
from examples.images.cli import main
from tests.examples.images.test_configs import CONFIGS, small


def test_images_are_standardised():
    task = Classification(nn.Identity(), 256, mean=[0.5, 0.2], std=[0.25, 0.1])
    shown = task.logits(torch.tensor([255, 0]).reshape(1, 2, 1, 1))
    torch.testing.assert_close(shown.flatten(), torch.tensor([2.0, -2.0]))


@pytest.mark.usefixtures("no_arguments")
def test_a_run_prints_its_accuracy(tmp_path, capsys):
    config = small(CONFIGS["i_resnet_cifar10_classifier"], tmp_path)
    few = ["--trainer.limit_test_batches=2"]
    cli = main(["fit_and_test", f"--config={config}", *few], Classification)
    printed = re.search(
        r"accuracy: (\d+\.\d\d) ± \d+\.\d\d % \(test images: 16\)", capsys.readouterr().out
    )
    accuracy = float(cli.trainer.callback_metrics["accuracy/test"])
    assert float(printed[1]) == pytest.approx(100 * accuracy, abs=0.01)
