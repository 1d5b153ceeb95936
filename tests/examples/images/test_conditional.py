"""Density of images of each class: the bits of each class, and a run."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images import sample, weights
from examples.images.cli import main
from examples.images.conditional import ConditionalEstimation
from examples.images.run_errors import SetupError
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConditionalGlow, ConditionalResidualFlow, ConvBlock
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import ConvConditioner
from pyro_resflow.transforms import initialize
from tests.examples.images.test_configs import CONFIGS, small

SHAPE = (1, 4, 4)
IMAGES = torch.randint(0, 16, (20, *SHAPE), generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3


def task() -> ConditionalEstimation:
    torch.manual_seed(0)
    flow = ConditionalResidualFlow(
        SHAPE, (1,), num_classes=3, network=ConvBlock(4), end_blocks=0, logdet=Exact()
    )
    initialize(flow, (IMAGES + 0.5) / 16, context=LABELS)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ConditionalEstimation(flow, 16, test_draws=2).eval()


def test_the_bits_of_each_class_are_those_of_the_flow_at_it():
    conditional = task()
    torch.manual_seed(1)
    bits = conditional.bits_of_classes(IMAGES)
    for label in range(3):
        d = conditional.flow.condition(torch.tensor(label)).distribution()
        torch.manual_seed(1)
        expected = Dequantized(d, conditional.dequantizer, 16).bits_per_dim(IMAGES)
        torch.testing.assert_close(bits[:, label], expected)
    torch.manual_seed(1)
    of_labels = conditional.bits_per_dim(IMAGES, LABELS)
    torch.testing.assert_close(of_labels, bits.gather(1, LABELS[:, None])[:, 0])


def test_a_test_counts_the_images_whose_class_gives_the_fewest_bits(monkeypatch):
    conditional = task()
    bits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 5.0, 4.0], [2.0, 2.5, 0.5]])
    monkeypatch.setattr(conditional, "bits_of_classes", lambda images: bits)
    monkeypatch.setattr(conditional, "log", lambda *_, **__: None)
    conditional.test_step((IMAGES[:3], torch.tensor([1, 1, 2])), 0)
    conditional.on_test_epoch_end()
    assert conditional.held_out.mean == pytest.approx((1 + 5 + 0.5) / 3)
    assert conditional.held_out.accuracy == pytest.approx(2 / 3)


def test_samples_come_in_one_row_for_each_class():
    conditional = task()
    torch.manual_seed(1)
    images, columns = conditional.samples(7)
    torch.manual_seed(1)
    expected = conditional.distribution(labels=torch.arange(3)).sample((2,))
    assert columns == 2
    for label in range(3):
        assert torch.equal(images[2 * label : 2 * label + 2], expected[:, label])


@pytest.mark.usefixtures("no_arguments")
def test_a_run_is_tested_and_reported(tmp_path, capsys):
    config = small(CONFIGS["residual_flow_fashion_mnist_classes"], tmp_path)
    few = ["--trainer.limit_test_batches=2", "--report.samples=10", "--report.reconstructions=2"]
    few.append("--model.flow.init_args.end_blocks=0")
    cli = main(["fit_and_test", f"--config={config}", *few], ConditionalEstimation)
    line = r"held-out bits/dim: \d+\.\d+ ± \d+\.\d+ \(test images: 16\), accuracy: \d+\.\d\d ± "
    assert re.search(line, capsys.readouterr().out)
    assert cli.model.flow.num_classes == 10
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "python -m examples.images.conditional" in page
    assert "one row for each class" in page
    kept = weights.load_part(tmp_path / "run" / "flow.safetensors")
    images, labels = torch.rand(4, *kept.event_shape), torch.arange(4)
    expected = cli.model.flow.eval().condition(labels).inv(images)
    assert torch.equal(kept.condition(labels).inv(images), expected)
    sample.main(tmp_path / "run" / "flow.safetensors", number=10)
    assert (tmp_path / "run" / "flow_samples.png").exists()


def test_pictures_of_one_class_or_of_all():
    flow = ConditionalGlow(SHAPE, (1,), num_classes=3, network=ConvConditioner(4)).eval()
    initialize(flow, (IMAGES + 0.5) / 16, context=LABELS)
    # 64 pixels for each image and 4 around it
    assert sample.draw(flow, 7, 1.0, None).shape == (3, 3 * 68 + 4, 2 * 68 + 4)
    assert sample.draw(flow, 4, 1.0, 2).shape == (3, 2 * 68 + 4, 2 * 68 + 4)
    with pytest.raises(SetupError, match=r"label: expected 0 .. 2, got 3"):
        sample.draw(flow, 4, 1.0, 3)
    with pytest.raises(SetupError, match="label 1: the flow was trained without labels"):
        sample.draw(flow.condition(torch.tensor(1)), 4, 1.0, 1)
    of_vectors = ConditionalGlow(SHAPE, (1,), context_dim=3, network=ConvConditioner(4))
    with pytest.raises(SetupError, match="takes a vector"):
        sample.draw(of_vectors, 4, 1.0, None)


@pytest.mark.usefixtures("no_arguments")
def test_labels_are_needed(tmp_path):
    config = small(CONFIGS["residual_flow_fashion_mnist_classes"], tmp_path)
    with pytest.raises(SystemExit, match="ConditionalEstimation learns from labels"):
        main(["fit", f"--config={config}", "--data.labels=false"], ConditionalEstimation)
