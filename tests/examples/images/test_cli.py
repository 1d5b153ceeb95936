"""Mistakes on the command line get one short error, never a traceback."""

from __future__ import annotations

import logging
import re

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from lightning import LightningModule, Trainer

from examples.images import quiet, sample
from examples.images.cli import CONFIGS, main
from examples.images.initialization_bar import initialization_bar
from examples.images.run_errors import SetupError
from pyro_resflow import checkpoints, residual_flow
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.nn import initialize_by
from pyro_resflow.transforms import initialize

DIGITS = f"--config={CONFIGS / 'residual_flow_digits.yaml'}"


pytestmark = pytest.mark.usefixtures("no_arguments")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data.bach_size=3"], ["did you mean --data.batch_size?"]),
        (["--model.flow.bloks=3"], ["did you mean blocks?", "ResidualFlow takes event_shape,"]),
        (
            ["--data.source=Mnit"],
            ["did you mean examples.images.sources.Mnist?", "known: Averaged, CelebA, CelebAHQ,"],
        ),
        (["--data.source=ImageNet32"], ["give --data.source.root"]),
        (["--model.flow.logdet=Krilov"], ["did you mean pyro_resflow.logdet.Krylov?"]),
        (
            ["--config=residual_flow_digit.yaml"],
            [f"did you mean {CONFIGS}/residual_flow_digits.yaml?"],
        ),
    ],
)
def test_a_mistake_is_answered_in_a_few_lines(arguments, expected, capsys):
    pytest.importorskip("pyro_resflow.interop.numpyro")  # which has a Krylov as well
    with pytest.raises(SystemExit) as end:
        main(["fit", DIGITS, *arguments])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) <= 12
    assert re.search(r"all options: python -m examples\.images( fit)? --help\n$", said)
    for line in expected:
        assert line in said


def test_a_class_that_has_moved_is_found_by_its_name(capsys):
    with pytest.raises(SystemExit):
        main(["fit", DIGITS, "--trainer.callbacks=examples.images.averaging.WeightAverage"])
    assert "did you mean examples.images.callbacks.WeightAverage?" in capsys.readouterr().err


def test_without_a_configuration_one_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["fit"])
    assert f"--config {CONFIGS}/residual_flow_digits.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.accelerator=gpu", "trainer.accelerator 'gpu': torch .* finds no such device"),
        ("trainer.accelerator=gpus", "invalid accelerator name"),
        ("model.flow.alpha=2", "alpha: expected a number in"),
    ],
)
def test_what_a_class_refuses_is_an_error_without_a_traceback(
    setting, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main(["fit", DIGITS, f"--trainer.default_root_dir={tmp_path}", f"--{setting}"])


def test_repetitions_and_advertisements_are_left_out(tmp_path, caplog):
    quiet.silence()
    caplog.set_level(logging.INFO)
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=1, accelerator="cpu")
    trainer.strategy.connect(LightningModule())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    said = [record.getMessage() for record in caplog.records]
    assert any("GPU available" in line for line in said)
    assert not any("weights_only" in line or "Tip" in line for line in said)


def image_flow() -> ResidualFlow:
    flow = ResidualFlow((1, 4, 4), blocks=(1, 1), network=ConvBlock(4), end_blocks=0)
    return flow.requires_grad_(False)


def test_the_beginning_counts_the_layers_of_a_flow(capsys):
    flow = image_flow().requires_grad_(True)  # as it is before training
    with initialization_bar(flow, delay=0) as bar:
        initialize_by(flow.inv, [torch.rand(8, 1, 4, 4)])
    assert bar.n == bar.total > 4
    assert re.search(r"initialising: 100%.*(s/layer|layer/s)", capsys.readouterr().err)
    flow.inv(torch.rand(8, 1, 4, 4))
    assert bar.n == bar.total


def test_samples_are_written_beside_the_weights(tmp_path):
    flow = image_flow()
    initialize(flow, torch.rand(8, 1, 4, 4))
    checkpoints.save(flow, tmp_path / "flow.safetensors")
    sample.main(tmp_path / "flow.safetensors", number=1)
    assert (tmp_path / "flow_samples.png").stat().st_size > 0


def test_weights_that_are_no_flow_of_images_are_named(tmp_path):
    (tmp_path / "text").write_text("text")
    checkpoints.save(residual_flow(2, blocks=1), tmp_path / "vectors")
    for name, message in {
        "nothing": "nothing",
        "text": "text",
        "vectors": "holds a Compose, not a flow of images",
    }.items():
        with pytest.raises(SetupError, match=rf"^weights.*{message}") as error:
            sample.main(tmp_path / name)
        assert str(error.value).count(str(tmp_path / name)) == 1
