"""Density and classes at once: the objective, and a run."""

from __future__ import annotations

import math
import re

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from torch.nn import functional as F

from examples.images import weights
from examples.images.cli import main
from examples.images.hybrid import HybridEstimation
from examples.images.labelled import LabelledHeldOut
from pyro_resflow.checkpoints import info
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.logdet import Exact
from tests.examples.images.test_configs import CONFIGS, small

SHAPE = (1, 4, 4)
IMAGES = torch.randint(0, 16, (20, *SHAPE), generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3


def task(weight: float = 1.0) -> HybridEstimation:
    flow = ResidualFlow(SHAPE, (1,), network=ConvBlock(4), alpha=None, logdet=Exact())
    task = HybridEstimation(flow, 16, classes=3, weight=weight, hidden_channels=8)
    task.bits_and_logits(IMAGES)
    return task


def test_the_bits_are_those_of_the_flow():
    hybrid = task()
    torch.manual_seed(1)
    bits, logits = hybrid.bits_and_logits(IMAGES)
    torch.manual_seed(1)
    expected = Dequantized(hybrid.flow.distribution(), hybrid.dequantizer, 16).bits_per_dim(IMAGES)
    torch.testing.assert_close(bits, expected)
    assert logits.shape == (20, 3)


@pytest.mark.parametrize("weight", [0.0, 1.0, 16.0])
def test_the_objective_is_in_bits(weight):
    hybrid = task(weight)
    torch.manual_seed(1)
    loss, mean_bits, accuracy = hybrid.loss((IMAGES, LABELS))
    torch.manual_seed(1)
    bits, logits = hybrid.bits_and_logits(IMAGES)
    cross_entropy = F.cross_entropy(logits, LABELS)
    torch.testing.assert_close(loss, weight * bits.mean() + cross_entropy / math.log(2))
    torch.testing.assert_close(mean_bits, bits.mean())
    assert accuracy == (logits.argmax(-1) == LABELS).float().mean()


def test_a_result_tells_bits_and_accuracy():
    result = LabelledHeldOut(1.5, 0.01, 100, 0.912, 0.0283)
    assert str(result) == (
        "held-out bits/dim: 1.500 ± 0.010 (test images: 100), accuracy: 91.20 ± 2.83 %"
    )


@pytest.mark.usefixtures("no_arguments")
def test_a_run_is_tested_and_reported(tmp_path, capsys):
    config = small(CONFIGS["residual_flow_mnist5k_hybrid"], tmp_path)
    few = ["--trainer.limit_test_batches=2", "--report.samples=4", "--report.reconstructions=2"]
    cli = main(["fit_and_test", f"--config={config}", *few], HybridEstimation)
    line = r"held-out bits/dim: \d+\.\d+ ± \d+\.\d+ \(test images: 16\), accuracy: \d+\.\d\d ± "
    assert re.search(line, capsys.readouterr().out)
    assert cli.model.held_out.accuracy == pytest.approx(
        float(cli.trainer.callback_metrics["accuracy/test"])
    )
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "python -m examples.images.hybrid" in page
    said = info(tmp_path / "run" / "hybrid.safetensors").notes
    assert said["command"] == "python -m examples.images.hybrid"
    kept = weights.load_part(tmp_path / "run" / "hybrid.safetensors")
    images = torch.rand(4, *cli.model.flow.event_shape)
    assert torch.equal(kept.logits(images), cli.model.hybrid.eval().logits(images))


def test_a_weight_that_is_not_finite_stops_training(tmp_path):
    config = small(CONFIGS["residual_flow_mnist5k_hybrid"], tmp_path)
    with pytest.raises(SystemExit, match="a weight is not finite; it begins in the weight "):
        main(
            ["fit", f"--config={config}", "--model.optimizer.init_args.lr=1e30"],
            HybridEstimation,
        )


def test_the_hybrids_to_be_compared_are_of_one_size(tmp_path, monkeypatch):
    from tests.examples.images.test_configs import built

    monkeypatch.setattr("sys.argv", ["images"])
    sizes = []
    for name in ("residual_flow_mnist5k_hybrid", "real_nvp_mnist5k_hybrid"):
        model = built(CONFIGS[name], tmp_path / name, monkeypatch).model
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
