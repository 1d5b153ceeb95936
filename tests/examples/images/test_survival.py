"""Faults that a training run survives."""

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.atomic_files import remove_unfinished
from examples.conditions import resuming
from examples.images.callbacks.stop_request import StopRequest
from examples.images.cli import ImageCLI, main
from examples.images.storage import AtomicCheckpoints
from examples.images.task import DensityEstimation
from tests.examples.images.recording import CrashError, Step, recorded
from tests.examples.images.test_runs import CONFIGS, NARROW

STEPS = 18
SETTINGS = {
    **NARROW,
    "trainer.limit_train_batches": "6",
    "trainer.max_epochs": "3",
    "trainer.enable_model_summary": "false",
    "safekeeping.every_n_steps": "4",
}


def arguments(folder: Path, *happens: str, **settings: str) -> list[str]:
    """A fit in a folder that writes down its steps there; `happens` goes to the recorder."""
    options = {**SETTINGS, "trainer.default_root_dir": str(folder), **settings}
    return [
        "fit",
        f"--config={CONFIGS / 'residual_flow_digits.yaml'}",
        *(f"--{name}={value}" for name, value in options.items()),
        "--trainer.callbacks+=tests.examples.images.recording.Recorder",
        f"--trainer.callbacks.path={folder / 'record'}",
        *(f"--trainer.callbacks.{each}" for each in happens),
    ]


def fit(folder: Path, *happens: str, **settings: str) -> ImageCLI:
    return main(arguments(folder, *happens, **settings))


def resume(folder: Path) -> tuple[int, ImageCLI]:
    """Go on with a run; the step at which it is taken up, and the end."""
    last = folder / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    (folder / "record.0").unlink()
    return step, fit(folder, ckpt_path=str(last))


pytestmark = pytest.mark.usefixtures("no_arguments")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Step], ImageCLI]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["images"])
        cli = fit(folder)
    return recorded(folder), cli


def check_resumes(folder: Path, saved: int, undisturbed: tuple[dict[int, Step], ImageCLI]) -> None:
    """Go on from a step with what an undisturbed run does, to the last bit."""
    expected, whole = undisturbed
    assert sorted(expected) == list(range(1, STEPS + 1))
    resumed, cli = resume(folder)
    assert resumed == saved
    assert recorded(folder) == {s: step for s, step in expected.items() if s > saved}
    metric = "bits/validation"
    assert cli.trainer.callback_metrics[metric] == whole.trainer.callback_metrics[metric]


def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, undisturbed):
    command = [*arguments(tmp_path, "at=11", "event=SIGKILL")]
    killed = subprocess.run(
        [sys.executable, "-m", "examples.images", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert max(recorded(tmp_path)) == 11
    check_resumes(tmp_path, 8, undisturbed)


@pytest.mark.parametrize(("crash", "saved"), [(3, 0), (6, 4), (8, 6), (14, 12)])
def test_a_run_resumes_from_the_start_the_middle_and_the_end_of_an_epoch(
    tmp_path, undisturbed, crash, saved
):
    with pytest.raises(CrashError):
        fit(tmp_path, f"at={crash}")
    check_resumes(tmp_path, saved, undisturbed)


@pytest.mark.parametrize(("event", "at"), [("SIGINT", 9), ("SIGINT", 12), ("SIGTERM", 10)])
def test_a_run_that_is_asked_to_stop_saves_first(tmp_path, undisturbed, capsys, event, at):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, f"at={at}", f"event={event}")
    assert end.value.code == 128 + getattr(signal, event)
    last = tmp_path / "checkpoints" / "last.ckpt"
    command = resuming("examples.images", arguments(tmp_path, f"at={at}", f"event={event}"), last)
    assert f"stopped after step {at}\nto resume: {command}\n" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    check_resumes(tmp_path, at, undisturbed)


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_is_not_held_back(undisturbed):
    _, cli = undisturbed
    request = StopRequest()
    request.listen()
    assert request.signal_number(cli.trainer) is None
    signal.raise_signal(signal.SIGINT)
    assert request.signal_number(cli.trainer) == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


class KillsWhoSaves:
    """Kills the process in the middle of writing it."""

    def __reduce__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_while_it_saves_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    storage = AtomicCheckpoints()
    old = {"step": torch.arange(1000)}
    storage.save_checkpoint(old, path)
    child = os.fork()
    if child == 0:
        storage.save_checkpoint({"step": torch.zeros(1000), "end": KillsWhoSaves()}, path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert torch.equal(storage.load_checkpoint(path)["step"], old["step"])
    storage.save_checkpoint({"step": 1}, path)
    assert storage.load_checkpoint(path) == {"step": 1}
    remove_unfinished(path.parent)  # as the next run does
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("place", ["a file", "a file in the way", "/proc"])
def test_a_folder_that_cannot_be_written_to_is_named_before_the_first_step(tmp_path, place):
    folder = tmp_path / "run"
    if place == "/proc":
        folder = Path("/proc/run")
    elif place == "a file":
        folder.touch()
    else:
        folder.mkdir()
        (folder / "checkpoints").touch()
    with pytest.raises(SystemExit, match=r"cannot be written to .*--trainer\.default_root_dir"):
        main([*arguments(folder), f"--trainer.callbacks.path={tmp_path / 'record'}"])
    assert not (tmp_path / "record.0").exists()


def test_a_missing_data_set_is_named_before_the_first_step(tmp_path):
    source = {"data.source": "examples.images.sources.FashionMnist"}
    empty = {"data.source.system_folder": str(tmp_path)}
    with pytest.raises(SystemExit, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        fit(tmp_path / "run", **source, **empty)
    assert not (tmp_path / "run" / "record.0").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"ckpt_path 'nowhere\.ckpt': the file does not exist"):
        fit(tmp_path, ckpt_path="nowhere.ckpt")


def test_a_folder_without_a_checkpoint_is_not_a_run(tmp_path):
    (tmp_path / "config.yaml").touch()
    assert fit(tmp_path, **{"trainer.max_epochs": "1"}).trainer.global_step == 6


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the loss of some steps infinitely large less infinitely large."""
    bits_per_dim = DensityEstimation.bits_per_dim

    def bits(self: DensityEstimation, images: torch.Tensor) -> torch.Tensor:
        loss = bits_per_dim(self, images)
        bad = self.trainer.training and self.global_step + 1 in steps
        return loss * torch.inf - loss * torch.inf if bad else loss

    monkeypatch.setattr(DensityEstimation, "bits_per_dim", bits)


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, monkeypatch):
    poisoned(monkeypatch, {3, 4, 8})
    with pytest.warns(
        UserWarning, match=r"step 4: the loss .* not finite \(2 in a row\); skipped, 2 in all"
    ):
        cli = fit(tmp_path)
    steps = recorded(tmp_path)
    for step in range(2, STEPS + 1):
        changed = [
            getattr(steps[step], part) != getattr(steps[step - 1], part)
            for part in ("weights", "optimizer", "average")
        ]
        assert changed == [step not in (3, 4, 8)] * 3
    assert cli.trainer.callback_metrics["steps/skipped"] == 3


def test_after_a_few_in_a_row_training_stops_and_says_where_and_what_to_go_back_to(
    tmp_path, monkeypatch
):
    poisoned(monkeypatch, set(range(9, STEPS)))
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, **{"skip_non_finite.patience": "2"})
    last = tmp_path / "checkpoints" / "last.ckpt"
    message = str(end.value)
    assert re.search(r"step 11: .* not finite \(3 in a row\); it begins in the gradient", message)
    assert f"Last good checkpoint: {last}." in message
    assert torch.load(last, weights_only=True)["global_step"] == 8
    assert max(recorded(tmp_path)) == 10


def test_a_weight_that_is_not_finite_stops_training(tmp_path):
    with pytest.raises(SystemExit, match="a weight is not finite; it begins in the weight 'flow"):
        fit(tmp_path, **{"model.optimizer.init_args.lr": "1e30"})


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_one_image_at_a_time_in_half_precision(tmp_path, precision):
    cli = fit(
        tmp_path,
        **{
            "data.batch_size": "1",
            "trainer.precision": precision,
            "trainer.max_epochs": "1",
        },
    )
    losses = [float.fromhex(step.loss) for step in recorded(tmp_path).values()]
    assert len(losses) == 6
    assert all(map(math.isfinite, losses))
    assert cli.trainer.callback_metrics["steps/skipped"] == 0
