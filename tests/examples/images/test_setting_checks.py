"""Settings that do not fit together are refused before the first step, by name."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.trainer.states import TrainerFn

from examples.images.callbacks.report import first_batch
from examples.images.classification import Classification
from examples.images.cli import ImageCLI, extract_options, main
from examples.images.data import ImageData
from examples.images.hybrid import HybridEstimation
from examples.images.optimization import optimization
from examples.images.run_errors import SetupError
from examples.images.setting_checks import (
    HALF_PRECISIONS,
    check_callbacks,
    check_epoch_position,
    check_monitors,
    check_precision,
    check_tested_images,
)
from examples.images.sources import Digits
from examples.images.storage import read_checkpoint
from examples.images.task import DensityEstimation, check_draws
from pyro_resflow.flows import RealNVP
from pyro_resflow.nn import ResidualConditioner
from pyro_resflow.transforms import is_deterministic
from tests.examples.images.test_runs import CONFIGS, run

PLATEAU = {
    "model.lr_scheduler": "lightning.pytorch.cli.ReduceLROnPlateau",
    "model.lr_scheduler.monitor": "bits/validation",
}


pytestmark = pytest.mark.usefixtures("no_arguments")


REFUSED = {
    "bf16-true": ({"trainer.precision": "bf16-true"}, r"trainer\.precision bf16-true"),
    "bins": (
        {"model.bins": "256"},
        r"model\.bins 256: the data decide it, and Digits has 17",
    ),
    "shape": (
        {"model.flow.init_args.event_shape": "[3, 8, 8]"},
        r"event_shape \[3, 8, 8\]: the data decide it, and Digits has \[1, 8, 8\]",
    ),
    "labels": ({"data.labels": "true"}, r"data\.labels true: DensityEstimation learns from im"),
    "samples": ({"model.test_samples": "3"}, r"model\.test_samples 3: .*logdet\.Exact"),
    "one image": (
        {"data.validation_fraction": "0.9992"},
        r"data\.validation_fraction 0\.9992: it leaves 1 of 1437 images",
    ),
    "batch size finder": (
        {"trainer.callbacks+": "lightning.pytorch.callbacks.BatchSizeFinder"},
        r"trainer\.callbacks BatchSizeFinder: .* set data\.batch_size",
    ),
    "plateau without monitor": (
        {"model.lr_scheduler": "torch.optim.lr_scheduler.ReduceLROnPlateau"},
        r"model\.lr_scheduler\.init_args\.monitor",
    ),
    "plateau with another": (
        {**PLATEAU, "model.lr_scheduler.monitor": "accuracy/validation"},
        r"model\.lr_scheduler ReduceLROnPlateau: monitor 'accuracy/validation' is not logged",
    ),
    "nothing validated": (
        {"trainer.limit_val_batches": "0"},
        r"trainer\.limit_val_batches 0: .*EarlyStopping monitors bits/validation",
    ),
    "nothing tested": ({"trainer.limit_test_batches": "0"}, r"trainer\.limit_test_batches 0"),
    "barebones": ({"trainer.barebones": "true"}, r"trainer\.barebones true"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_before_the_first_step(tmp_path, name, monkeypatch):
    settings, message = REFUSED[name]
    steps: list[int] = []
    monkeypatch.setattr(DensityEstimation, "training_step", lambda *_: steps.append(1))
    with pytest.raises(SystemExit, match="^error: .*" + message):
        run("fit_and_test", tmp_path, **settings)
    assert not steps


@pytest.mark.parametrize("precision", HALF_PRECISIONS)
def test_weights_of_half_precision_are_refused(precision):
    with pytest.raises(SetupError, match=rf"trainer\.precision {precision}: .* bf16-mixed"):
        check_precision(precision)


@pytest.mark.parametrize("size", ["batch_size", "evaluation_batch_size"])
def test_a_batch_has_at_least_one_image(size):
    with pytest.raises(SetupError, match=rf"data\.{size}: expected at least 1, got 0"):
        ImageData(Digits(), **{size: 0})


@pytest.mark.parametrize("number", ["test_draws", "test_samples"])
def test_a_test_takes_at_least_one_draw(number):
    numbers = {"test_draws": 1, "test_samples": 1, number: 0}
    with pytest.raises(SetupError, match=rf"model\.{number}: expected at least 1, got 0"):
        check_draws(RealNVP((1, 4, 4), scales=1, network=ResidualConditioner(4)), **numbers)


def test_a_learning_rate_finder_is_refused():
    with pytest.raises(SetupError, match=r"Finder: .* set model\.optimizer\.init_args\.lr"):
        check_callbacks([LearningRateFinder()])


def test_batch_norms_are_deterministic_in_tests():
    flow = RealNVP((1, 4, 4), scales=1, network=ResidualConditioner(4))
    list(flow.modules())[-1].eval()  # the other modules stay in training mode
    modes = [module.training for module in flow.modules()]
    assert not is_deterministic(flow)
    check_draws(flow, test_draws=1, test_samples=3)
    assert [module.training for module in flow.modules()] == modes


def test_what_the_data_decide_is_refused_in_a_configuration_too(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("model:\n  bins: 256\n")
    folder = f"--trainer.default_root_dir={tmp_path}"
    configs = [f"--config={CONFIGS / 'residual_flow_digits.yaml'}", f"--config={other}"]
    with pytest.raises(SystemExit, match=r"model\.bins 256: the data decide it.* 17; leave it"):
        main(["fit", *configs, folder])


@pytest.mark.parametrize("given", [{}, {"model.network.init_args.num_classes": 7}])
def test_what_a_class_takes_by_default_is_not_given(tmp_path, monkeypatch, given):
    """A classifier has 10 classes unless the data have fewer."""
    found: list[dict[str, object]] = []

    def stop(cli: ImageCLI) -> None:
        found.append(cli.given)
        raise SetupError("enough")

    monkeypatch.setattr(ImageCLI, "instantiate_classes", stop)
    config = f"--config={CONFIGS / 'i_resnet_cifar10_classifier.yaml'}"
    options = [f"--{name}={value}" for name, value in given.items()]
    with pytest.raises(SystemExit, match="enough"):
        main(["fit", config, f"--trainer.default_root_dir={tmp_path}", *options], Classification)
    assert found == [given]


def test_options_that_the_data_decide_are_taken_out_of_a_command_line():
    links = DensityEstimation.links.values()
    given, rest = extract_options(links, ["fit", "--model.bins", "256", "--model.test_draws=3"])
    assert given == {"model.bins": 256}
    assert rest == ["fit", "--model.test_draws=3"]
    assert extract_options(links, ["--model.bins=8"]) == ({"model.bins": 8}, [])


@pytest.mark.parametrize("task", [HybridEstimation, Classification])
def test_a_task_of_classes_needs_labels(task, tmp_path):
    from tests.examples.images import test_configs

    name = {
        HybridEstimation: "residual_flow_mnist5k_hybrid",
        Classification: "i_resnet_cifar10_classifier",
    }[task]
    config = test_configs.small(test_configs.CONFIGS[name], tmp_path)
    with pytest.raises(SystemExit, match=r"data\.labels false: .* set data\.labels to true"):
        main(["fit", f"--config={config}", "--data.labels=false"], task)


def test_a_run_of_fewer_steps_than_an_epoch_is_validated_and_tested(tmp_path):
    cli = run("fit_and_test", tmp_path, **{"trainer.max_steps": "1"})
    assert (
        torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 1
    )
    assert math.isfinite(cli.model.held_out.mean)


def test_a_run_in_double_precision_is_tested_and_reported(tmp_path):
    settings = {"trainer.max_steps": "1", "trainer.precision": "64-true"}
    cli = run("fit_and_test", tmp_path, **settings)
    assert {weight.dtype for weight in cli.model.parameters()} == {torch.float64}
    assert math.isfinite(cli.model.held_out.mean)
    assert (tmp_path / "report.html").exists()


def test_a_rate_that_falls_when_a_metric_stands_still(tmp_path):
    settings = {**PLATEAU, "model.lr_scheduler.patience": "0", "model.lr_scheduler.threshold": "9"}
    cli = run("fit", tmp_path, **settings, **{"trainer.max_epochs": "3"})
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-6)


def test_a_schedule_that_waits_counts_validations():
    schedule = optimization(
        nn.Linear(1, 1),
        torch.optim.Adam,
        lambda optimizer: ReduceLROnPlateau(optimizer, "bits/validation"),
        validated_every=3,
    )["lr_scheduler"]
    assert (schedule["interval"], schedule["frequency"]) == ("epoch", 3)
    assert schedule["monitor"] == "bits/validation"


def test_a_checkpoint_can_be_saved_after_validation(tmp_path):
    run("fit", tmp_path / "run", **{"trainer.max_steps": "1", "trainer.max_epochs": "2"})
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    cli = run("validate", tmp_path / "validated", ckpt_path=last)
    cli.trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved = read_checkpoint(tmp_path / "saved.ckpt")["ImageData"]
    before = read_checkpoint(Path(last))["ImageData"]
    assert saved == before
    assert saved["batch"] == 1


def trainer(**settings: object) -> SimpleNamespace:
    usual = {"limit_test_batches": 1.0, "callbacks": [], "lr_scheduler_configs": []}
    return SimpleNamespace(**{**usual, **settings})


@pytest.mark.parametrize(("size", "limit"), [(1, 1), (256, 0), (1, 0.003)])
def test_a_test_needs_two_images(size, limit):
    data = ImageData(Digits(), evaluation_batch_size=size)
    data.setup()
    with pytest.raises(SetupError, match=r"trainer\.limit_test_batches .*two images"):
        check_tested_images(trainer(limit_test_batches=limit), data)
    check_tested_images(trainer(), data)


def test_a_callback_of_ones_own_may_log_what_is_monitored():
    from lightning.pytorch.callbacks import EarlyStopping

    class Own(EarlyStopping):
        pass

    task = SimpleNamespace(metrics=frozenset({"bits/validation"}))
    stopping = EarlyStopping("fid")
    with pytest.raises(SetupError, match="EarlyStopping: monitor 'fid' is not logged"):
        check_monitors(trainer(callbacks=[stopping]), task)
    check_monitors(trainer(callbacks=[stopping, Own("fid")]), task)


def test_pictures_are_of_the_first_images_however_small_the_batches():
    batches = torch.arange(12).view(12, 1, 1, 1).split(2)
    assert first_batch(batches, 5).flatten().tolist() == list(range(6))
    assert first_batch(batches, 50).flatten().tolist() == list(range(12))
    images, labels = first_batch([(batch, batch.flatten()) for batch in batches], 5)
    assert images.flatten().tolist() == labels.tolist() == list(range(6))


def test_a_larger_batch_in_the_middle_of_an_epoch_is_refused():
    data = ImageData(Digits(), batch_size=400)
    data.setup()
    place = {"order_seed": 5, "epoch": 2, "batch": 8, "batch_size": 32, "processes": 1}
    fitting = SimpleNamespace(fn=TrainerFn.FITTING)
    data.trainer = SimpleNamespace(state=fitting, world_size=1)
    with pytest.raises(SetupError, match=r"data\.batch_size 400 .* 8 batches of 32 images on 1"):
        data.load_state_dict(place)
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.TESTING), world_size=1)
    data.load_state_dict(place)
    assert data.state_dict() == {**place, "batch_size": 400}
    data.trainer = SimpleNamespace(state=fitting, world_size=1)
    data.load_state_dict({**place, "batch": 0})
    assert data.start == (2, 0)


@pytest.mark.parametrize(("batch", "batches"), [(8, 4), (8, 8)])
def test_an_epoch_that_became_too_short_is_refused(batch, batches):
    data = SimpleNamespace(start=(2, batch))
    with pytest.raises(
        SetupError, match=r"trainer\.limit_train_batches: .* after 8 batches, .*now"
    ):
        check_epoch_position(SimpleNamespace(num_training_batches=batches), data)
    check_epoch_position(SimpleNamespace(num_training_batches=batch + 1), data)
    check_epoch_position(
        SimpleNamespace(num_training_batches=batches), SimpleNamespace(start=(3, 0))
    )
