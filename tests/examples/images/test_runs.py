import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from torchvision.io import read_image

from examples.conditions import commit
from examples.images import sample
from examples.images.callbacks import report
from examples.images.callbacks.averaging import WeightAverage
from examples.images.callbacks.report import PICTURES, Report
from examples.images.callbacks.report_facts import duration
from examples.images.cli import ImageCLI, main
from examples.images.task import HeldOut
from pyro_resflow import checkpoints
from tests.versions import torch_is

CONFIGS = Path("examples/images/configs")
NARROW = {
    "data.batch_size": "32",
    "model.flow.init_args.blocks": "[1, 1]",
    "model.flow.init_args.network.init_args.hidden_channels": "4",
    "model.flow.init_args.end_blocks": "1",
    "model.flow.init_args.end_network.init_args.hidden_dims": "[8]",
    "model.test_draws": "2",
    "report.samples": "4",
    "report.reconstructions": "3",
    "trainer.accelerator": "cpu",
    "trainer.limit_train_batches": "2",
    "trainer.max_epochs": "1",
}


def run(subcommand: str, folder: Path, config: Path | None = None, **settings: str) -> ImageCLI:
    config = config or CONFIGS / "residual_flow_digits.yaml"
    options = {**NARROW, "trainer.default_root_dir": str(folder), **settings}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return main([subcommand, f"--config={config}", *arguments])


pytestmark = pytest.mark.usefixtures("no_arguments")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageCLI]:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["images", "fit_and_test", "--config=residual_flow_digits.yaml"])
        return folder, run("fit_and_test", folder)


def test_the_standard_error_is_that_of_the_mean():
    result = HeldOut.of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert result.mean == pytest.approx(2.5)
    assert result.standard_error == pytest.approx((5 / 3 / 4) ** 0.5)
    assert str(result) == "held-out bits/dim: 2.500 ± 0.645 (test images: 4)"


def test_a_run_writes_its_report(finished):
    folder, cli = finished
    for name in (*(picture.file for picture in PICTURES.values()), "config.yaml"):
        assert (folder / name).stat().st_size > 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert f"{cli.model.held_out.mean:.3f}" in page
    assert "Digits: 1x8x8, 17 grey levels; 1,293 training, 144 validation, 360 test" in page
    assert "4.087 bits/dim" in page  # log2 of 17
    assert "ResidualFlow, UniformDequantization; " in page
    assert f"{commit()}</td>" in page
    assert f"torch {torch.__version__}" in page
    assert re.search(r"2 steps in (\d+ min )?\d+ s", page)
    assert "python -m examples.images fit_and_test --config=residual_flow_digits.yaml" in page
    assert "hidden_channels: 4" in page
    assert not re.search(r"(src|href)=.(https?:|/)", page)


def test_a_report_needs_images_to_go_between():
    with pytest.raises(ValueError, match="reconstructions: expected at least 2, got 1"):
        Report(reconstructions=1)


def test_the_time_of_training_is_counted_over_resumptions(monkeypatch):
    clock = iter([10.0, 40.0, 100.0, 107.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    stopped, resumed = Report(), Report()
    stopped.on_train_start(None, None)
    resumed.load_state_dict(stopped.state_dict())
    resumed.on_train_start(None, None)
    resumed.on_train_end(None, None)
    assert resumed.seconds == 37
    resumed.load_state_dict({})
    assert (resumed.seconds, resumed.conditions) == (0, None)


@pytest.mark.parametrize(
    ("seconds", "words"), [(59.4, "59 s"), (61, "1 min 01 s"), (3723, "1 h 02 min 03 s")]
)
def test_durations_are_said_in_words(seconds, words):
    assert duration(seconds) == words


def test_a_run_saves_the_flow_that_it_tested(finished):
    folder, cli = finished
    flow = checkpoints.load(folder / "flow.safetensors")
    saved, tested = flow.state_dict(), cli.model.flow.state_dict()
    assert saved.keys() == tested.keys()
    assert all(torch.equal(saved[name], tested[name]) for name in tested)
    said = str(checkpoints.info(folder / "flow.safetensors"))
    assert "data: Digits" in said
    assert f"result: {cli.model.held_out}" in said


def test_a_saved_flow_draws_its_samples(finished, tmp_path, capsys):
    folder, cli = finished
    output = tmp_path / "new" / "drawn.png"
    sample.main(folder / "flow.safetensors", number=1, temperature=0.0, output=output)
    assert f"result: {cli.model.held_out}" in capsys.readouterr().out
    with torch.no_grad():
        of_noise_zero = cli.model.flow(torch.zeros(64)).clamp(0, 1)
    drawn = read_image(str(output))[:1, ::8, ::8] / 255  # each pixel is shown 8 by 8
    assert (drawn - of_noise_zero).abs().max() < 1 / 255


def test_a_test_uses_the_weights_of_the_checkpoint(finished):
    folder, cli = finished
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    current = checkpoint["current_model_state"]
    model = cli.model.state_dict()
    assert all(torch.equal(model[k], v) for k, v in checkpoint["state_dict"].items())
    assert any(not torch.equal(model[k], v) for k, v in current.items())


def test_the_result_is_printed_on_one_line(finished, tmp_path, capsys):
    folder, _ = finished
    run("test", tmp_path, ckpt_path=str(folder / "checkpoints" / "best.ckpt"))
    line = r"held-out bits/dim: \d+\.\d+ ± \d+\.\d+ \(test images: 360\)\n"
    assert re.search(line, capsys.readouterr().out)


def test_more_samples_tighten_the_bound(tmp_path):
    settings = {
        "model.flow": "examples.images.models.Glow",
        "model.flow.steps": "[1]",
        "model.flow.channels": "4",
        "model.test_draws": "1",
        "trainer.limit_train_batches": "40",
    }
    unused = [name for name in NARROW if name.startswith("model.flow")]

    def bits(samples: int) -> float:
        options = {k: v for k, v in NARROW.items() if k not in unused} | settings
        options["trainer.default_root_dir"] = str(tmp_path / str(samples))
        arguments = [f"--{name}={value}" for name, value in options.items()]
        config = f"--config={CONFIGS / 'residual_flow_digits.yaml'}"
        return main(
            ["fit_and_test", config, *arguments, f"--model.test_samples={samples}"]
        ).model.held_out.mean

    assert bits(50) < bits(1) - 0.001


@pytest.mark.parametrize(
    "file", ["flow.safetensors", pytest.param("checkpoints/best.ckpt", marks=pytest.mark.slow)]
)
def test_a_run_starts_from_weights_with_a_new_optimizer(file, finished, tmp_path):
    folder, _ = finished
    saved = checkpoints.load(folder / "flow.safetensors")
    still = {"model.optimizer.init_args.lr": "0", "trainer.callbacks": "[]"}
    cli = run("fit", tmp_path, **still, **{"model.weights": str(folder / file)})
    # with a learning rate of 0, the weights are those of the start
    for found, expected in zip(cli.model.flow.parameters(), saved.parameters(), strict=True):
        assert torch.equal(found, expected)
    steps = {int(state["step"]) for state in cli.trainer.optimizers[0].state.values()}
    assert steps == {cli.trainer.global_step} == {2}


def test_a_run_resumes(finished, tmp_path):
    folder, cli = finished
    checkpoint = folder / "checkpoints" / "last.ckpt"
    resumed = run("fit", tmp_path, **{"ckpt_path": str(checkpoint), "trainer.max_epochs": "2"})
    assert cli.trainer.global_step == 2
    assert resumed.trainer.global_step == 4
    (report,) = (c for c in resumed.trainer.callbacks if isinstance(c, Report))
    assert report.conditions.command.endswith("fit_and_test --config=residual_flow_digits.yaml")


def test_a_seed_reproduces_a_run(tmp_path):
    def weights(name: str) -> dict[str, torch.Tensor]:
        return run("fit", tmp_path / name).model.state_dict()

    first, second = weights("first"), weights("second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_exchanged_weights_carry_a_new_version(tmp_path):
    cli = run("fit", tmp_path)
    average = next(c for c in cli.trainer.callbacks if isinstance(c, WeightAverage))
    before = [p._version for p in cli.model.parameters()]
    average.on_train_end(cli.trainer, cli.model)
    after = [p._version for p in cli.model.parameters()]
    assert all(old < new for old, new in zip(before, after, strict=True))


@pytest.mark.skipif(not torch_is("2.9"), reason="torch before 2.9 has no Muon")
def test_colour_images_go_through(tmp_path):
    cli = run("fit", tmp_path, CONFIGS / "residual_flow_photo_patches.yaml")
    assert cli.model.flow.event_shape == (3, 32, 32)
    assert cli.trainer.global_step == 2


@pytest.mark.parametrize(
    "channels", [5, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 4))]
)
def test_images_of_other_channels_and_16_bits_go_through(channels, tmp_path):
    settings = {
        "data.source": "tests.examples.images.colours.Channels",
        "data.source.init_args.number": str(channels),
        "model.flow.init_args.blocks": "[1]",
    }
    cli = run("fit_and_test", tmp_path, **settings)
    assert cli.model.held_out.images == 10
    shown = [1, 2, 1, 2, 3][channels - 1]  # the colours, and each other channel beside them
    picture = read_image(str(tmp_path / PICTURES["Samples"].file))
    cell = 8 * (64 // 8)
    assert picture.shape == (3, 4 + 2 * (cell + 4), 4 + 2 * (shown * cell + 4))
    sample.main(tmp_path / "flow.safetensors", number=4)
    drawn = read_image(str(tmp_path / "flow_samples.png"))
    assert drawn.shape == picture.shape


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"file/run' cannot be written to .*default_root_dir"):
        run("fit", tmp_path / "file" / "run")


def test_an_earlier_run_is_not_overwritten(finished):
    folder, _ = finished
    with pytest.raises(SystemExit, match=r"holds an earlier run.*\nto resume: .*last\.ckpt"):
        run("fit", folder)
