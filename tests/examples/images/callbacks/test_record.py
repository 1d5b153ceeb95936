"""Settings of resumed runs: they take effect or are refused, and the record lists them."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from examples.images.callbacks.record import (
    RunRecord,
    changed_settings,
    check_changes,
    flatten,
    is_rate,
)
from examples.images.callbacks.resumption import renew_optimizer_state
from examples.images.cli import ImageCLI
from examples.images.diagnosis import rate_setting
from examples.images.run_errors import SetupError
from examples.images.schedules import OneCycle
from examples.images.storage import read_checkpoint
from tests.examples.images.test_runs import run

pytestmark = pytest.mark.usefixtures("no_arguments")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageCLI]:
    """A run of two steps, with a rate that falls after each."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["images"])
        return folder, run("fit", folder, **FALLING)


FALLING = {
    "model.lr_scheduler": "torch.optim.lr_scheduler.ExponentialLR",
    "model.lr_scheduler.gamma": "0.5",
}


def resume(begun: tuple[Path, ImageCLI], folder: Path, **settings: str) -> ImageCLI:
    last = str(begun[0] / "checkpoints" / "last.ckpt")
    return run("fit", folder, **{**FALLING, "ckpt_path": last, **settings})


def head(folder: Path) -> list[str]:
    lines = (folder / "config.yaml").read_text().splitlines()
    return [line for line in lines if line.startswith("# resumed")]


def test_new_settings_of_the_optimizer_and_its_schedule_take_effect(begun, tmp_path):
    """After four steps, whose rates are those of a run that began so."""
    cli = resume(
        begun,
        tmp_path,
        **{
            "trainer.max_epochs": "2",
            "model.optimizer.init_args.lr": "0.016",
            "model.optimizer.init_args.weight_decay": "0.3",
            "model.lr_scheduler.init_args.gamma": "0.25",
        },
    )
    (group,) = cli.trainer.optimizers[0].param_groups
    assert group["lr"] == pytest.approx(0.016 * 0.25**4)
    assert group["weight_decay"] == 0.3
    assert {float(state["step"]) for state in cli.trainer.optimizers[0].state.values()} == {4.0}
    changed = [
        "model.lr_scheduler.init_args.gamma was 0.5, now 0.25",
        "model.optimizer.init_args.lr was 0.005, now 0.016",
        "model.optimizer.init_args.weight_decay was 0.01, now 0.3",
        "trainer.max_epochs was 1, now 2",
    ]
    assert head(tmp_path) == [f"# resumed at step 2: {each}" for each in changed]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["max_epochs"] == 2
    history = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["settings_history"]
    assert [entry["step"] for entry in history] == [2]
    assert history[0]["changed"]["trainer.max_epochs"] == [1, 2]


def test_patience_takes_effect(begun, tmp_path):
    config = yaml.safe_load((begun[0] / "config.yaml").read_text())
    callbacks = config["trainer"]["callbacks"]
    (stopping,) = (each for each in callbacks if each["class_path"].endswith("EarlyStopping"))
    stopping["init_args"]["patience"] = 77
    (tmp_path / "patient.yaml").write_text(yaml.safe_dump(config))
    cli = resume(begun, tmp_path / "run", config=tmp_path / "patient.yaml")
    assert [each.patience for each in cli.trainer.early_stopping_callbacks] == [77]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("seed_everything", "3", r"seed_everything 3: the checkpoint's run has 0"),
        ("data.validation_fraction", "0.3", r"data\.validation_fraction 0\.3: .* has 0\.1"),
        ("model.optimizer.init_args.amsgrad", "true", r"model\.optimizer AdamW: .*max_exp_avg_sq"),
        (
            "model.flow.init_args.network.init_args.hidden_channels",
            "5",
            r"ckpt_path: .*net\.0\.weight has shape \(4, 1, 3, 3\) there and \(5, 1, 3, 3\) here",
        ),
    ],
)
def test_what_cannot_take_effect_is_refused_and_not_recorded(
    begun, tmp_path, setting, value, message
):
    with pytest.raises(SystemExit, match="^error: " + message):
        resume(begun, tmp_path, **{setting: value})
    assert not (tmp_path / "config.yaml").exists()


def test_one_process_writes_the_record_and_all_ask_for_its_folder(begun, tmp_path):
    """Where a run is, is broadcast: a question of one process alone would never be answered."""
    asked: list[int] = []

    class Asked:
        default_root_dir = str(tmp_path)
        strategy = SimpleNamespace(broadcast=lambda value: value)

        def __init__(self, rank: int) -> None:
            self.rank, self.is_global_zero = rank, rank == 0

        @property
        def log_dir(self) -> str:
            asked.append(self.rank)
            return str(tmp_path)

    record = next(c for c in begun[1].trainer.callbacks if isinstance(c, RunRecord))
    for rank in (0, 1):
        copied = RunRecord(record.parser, record.config)
        copied.on_fit_start(Asked(rank), None)
    assert asked.count(0) == asked.count(1)
    assert (tmp_path / "config.yaml").exists()


def test_settings_by_their_dotted_names():
    settings = {"a": {"b": [1, 2], "c": {}}, "d": [{"e": None}, {"e": 3}]}
    assert dict(flatten(settings)) == {"a.b": [1, 2], "a.c": {}, "d.0.e": None, "d.1.e": 3}


def test_changes_name_the_old_and_the_new_value():
    changed = changed_settings({"a": 1, "b": 2, "gone": 3}, {"a": 1, "b": 4, "new": 5})
    assert changed == {"b": [2, 4], "gone": [3, None], "new": [None, 5]}
    check_changes(changed)


class Trial:
    """An optimizer and a schedule after some steps, as a trainer and a task hold them."""

    def __init__(self, optimizer: Any, schedule: Any, steps: int, metric: bool = False) -> None:
        self.optimizer = optimizer
        parameter = nn.Parameter(torch.ones(2))
        self.built: Optimizer = optimizer([parameter])
        self.schedule = schedule(self.built)
        for _ in range(steps):
            parameter.grad = torch.tensor([1.0, 2.0])
            self.built.step()
            self.schedule.step(*([1.0] if metric else []))
        self.optimizers = [self.built]
        self.lr_scheduler_configs = [SimpleNamespace(scheduler=self.schedule)]

    @property
    def rate(self) -> float:
        return self.built.param_groups[0]["lr"]

    def checkpoint(self, steps: int) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "optimizer_states": [self.built.state_dict()],
                "lr_schedulers": [self.schedule.state_dict()],
                "global_step": steps,
            }
        )

    def restore(self, checkpoint: dict[str, Any], keep_rate: bool = False) -> None:
        renew_optimizer_state(self, self, checkpoint, keep_rate=keep_rate)
        self.built.load_state_dict(checkpoint["optimizer_states"][0])
        self.schedule.load_state_dict(checkpoint["lr_schedulers"][0])


SCHEDULES = {
    "steps": lambda optimizer: StepLR(optimizer, 2, gamma=0.5),
    "cycle": lambda optimizer: OneCycle(optimizer, total_steps=9),
    "function": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_renewed_schedule_is_where_it_would_be_had_the_run_begun_so(name):
    schedule = SCHEDULES[name]
    before = Trial(lambda p: Adam(p, lr=5.0), lambda o: StepLR(o, 1, gamma=0.9), steps=7)
    after = Trial(lambda p: Adam(p, lr=3.0, weight_decay=0.2), schedule, steps=0)
    after.restore(before.checkpoint(7))
    whole = Trial(lambda p: Adam(p, lr=3.0, weight_decay=0.2), schedule, steps=7)
    groups = (trial.built.state_dict()["param_groups"] for trial in (after, whole))
    assert next(groups) == next(groups)
    moments = [trial.built.state_dict()["state"][0]["exp_avg"] for trial in (after, before)]
    assert torch.equal(*moments)
    after.schedule.step()
    whole.schedule.step()
    assert after.rate == whole.rate


@pytest.mark.parametrize(("keep_rate", "rate"), [(True, 5 * 0.1), (False, 3.0)])
def test_a_schedule_that_waits_keeps_what_it_has_seen(keep_rate, rate):
    def waits(factor: float) -> Any:
        return lambda o: ReduceLROnPlateau(o, "bits/validation", factor=factor, patience=1)

    before = Trial(lambda p: SGD(p, lr=5.0), waits(0.1), steps=4, metric=True)
    assert before.rate == pytest.approx(0.5)
    after = Trial(lambda p: SGD(p, lr=3.0), waits(0.5), steps=0)
    after.restore(before.checkpoint(4), keep_rate)
    assert after.rate == pytest.approx(rate)
    after.schedule.step(1.0)
    assert after.rate == pytest.approx(rate / 2)


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch before 2.5")
def test_entries_that_only_matrices_have_are_not_asked_for():
    schedule = SCHEDULES["steps"]
    before = Trial(lambda p: torch.optim.Adafactor(p, lr=0.5), schedule, steps=3)
    after = Trial(lambda p: torch.optim.Adafactor(p, lr=0.25), schedule, steps=0)
    after.restore(before.checkpoint(3))
    assert after.rate == 0.125


def test_an_optimizer_of_other_groups_is_refused():
    before = Trial(lambda p: SGD(p, lr=5.0), SCHEDULES["steps"], steps=1)
    after = Trial(lambda p: SGD([{"params": [w]} for w in p], lr=5.0), SCHEDULES["steps"], steps=0)
    with pytest.raises(SetupError, match=r"SGD: it has 2 groups of parameters, .* 1; keep"):
        after.restore(before.checkpoint(1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lr", True), ("adam_lr", True), ("weight_decay", False), ("momentum", False)],
)
def test_rates_are_told_from_other_settings(name: str, expected: bool):
    assert is_rate(f"model.optimizer.init_args.{name}") == expected


def test_a_schedule_that_ends_before_the_checkpoint_is_refused():
    after = Trial(lambda p: SGD(p, lr=3.0), lambda o: OneCycleLR(o, 3.0, total_steps=5), steps=0)
    with pytest.raises(SetupError, match=r"ends before the checkpoint's step 7"):
        after.restore(after.checkpoint(7))


def test_the_peak_of_one_cycle_is_the_rate_of_the_optimizer():
    with pytest.raises(SetupError, match=r"max_lr 2\.0: the peak is the .* rate, 3\.0; set model"):
        Trial(lambda p: SGD(p, lr=3.0), lambda o: OneCycle(o, 2.0, total_steps=9), steps=0)


def test_the_advice_after_a_divergence_names_the_option_that_sets_the_rate():
    own = Trial(lambda p: SGD(p, lr=3.0), lambda o: OneCycle(o, total_steps=9), steps=2)
    assert rate_setting(own) == "--model.optimizer.init_args.lr (it is 3)"
    falls = Trial(lambda p: SGD(p, lr=3.0), SCHEDULES["function"], steps=2)
    assert rate_setting(falls) == "--model.optimizer.init_args.lr (it is 3)"
    torchs = Trial(lambda p: SGD(p, lr=3.0), lambda o: OneCycleLR(o, 2.0, total_steps=9), steps=2)
    assert rate_setting(torchs) == "--model.lr_scheduler.init_args.max_lr (it is 2)"
