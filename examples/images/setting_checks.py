"""Checks of settings that do not fit together, before the first step."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
)
from torch import Tensor

from examples.images.data import ImageData
from examples.images.run_errors import SetupError
from examples.images.storage import read_checkpoint

HALF_PRECISIONS = ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")
"""Precisions with weights of fewer than 32 bits, too few for norms and log-determinants."""

FINDERS = {BatchSizeFinder: "data.batch_size", LearningRateFinder: "model.optimizer.init_args.lr"}
"""Callbacks that change a setting in trial runs, with the setting."""

KNOWN_PACKAGES = ("lightning.", "examples.images.")
"""Packages whose callbacks log only values that a task names in its `metrics`."""


def check_base(path: Path) -> None:
    """Raise a `SetupError` if the settings that all configurations share are missing."""
    if not path.is_file():
        raise SetupError(
            f"{path} is missing: it holds the settings that all configurations share. Restore it "
            f"with git restore {path}"
        )


def check_unused(folder: Path) -> None:
    """Raise a `SetupError` if the folder holds an earlier run."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        raise SetupError(
            f"trainer.default_root_dir {str(folder)!r} holds an earlier run: delete it, name "
            "another folder with --trainer.default_root_dir, or resume it",
            last,
        )


def check_accelerator(accelerator: Any) -> None:
    """Raise a `SetupError` if torch does not find the accelerator on this machine."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if not {"gpu": cuda or mps, "cuda": cuda, "mps": mps}.get(accelerator, True):
        raise SetupError(
            f"trainer.accelerator {accelerator!r}: torch {torch.__version__} finds no such device "
            "on this machine; leave the setting out to use any device that it finds, or give "
            "--trainer.accelerator cpu"
        )


def check_checkpoint(path: str) -> None:
    """Raise a `SetupError` if the checkpoint does not exist or is damaged.

    Lightning itself checks the checkpoints that it finds by a name or on another computer.
    """
    if path in ("best", "last", "hpc") or "://" in path:
        return
    if not Path(path).is_file():
        raise SetupError(f"ckpt_path {path!r}: the file does not exist; name another checkpoint")
    read_checkpoint(Path(path))


def check_precision(precision: Any) -> None:
    """Refuse weights of half precision."""
    if precision in HALF_PRECISIONS:
        raise SetupError(
            f"trainer.precision {precision}: a flow's weights need 32 bits, for its norms and its "
            "log-determinants; take bf16-mixed or 16-mixed, which compute in half precision and "
            "keep the weights in 32 bits, or 32-true or 64-true"
        )


def check_barebones(barebones: bool) -> None:
    """Refuse Lightning's mode for measuring speed."""
    if barebones:
        raise SetupError(
            "trainer.barebones true: it switches off the checkpoints and the log that these runs "
            "depend on; leave it out"
        )


def check_linked_settings(
    given: Mapping[str, Any], data: ImageData, links: Mapping[str, str]
) -> None:
    """Refuse values that contradict the data, for settings that the data decide.

    Args:
        given: Values that a configuration or the command line gives, by the setting.
        data: The data.
        links: The linked settings: names of the data's attributes (`data.bins`) and of settings.
    """
    for name, setting in links.items():
        decided = getattr(data, name.removeprefix("data."))
        if setting in given and _plain(given[setting]) != _plain(decided):
            raise SetupError(
                f"{setting} {given[setting]}: the data decide it, and {data.source} has "
                f"{_plain(decided)}; leave it out"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def check_labels(task: LightningModule, data: ImageData) -> None:
    """Refuse batches with labels for a task without classes, and the other way round."""
    if data.labels and not task.labelled:
        raise SetupError(
            f"data.labels true: {type(task).__name__} learns from images alone; leave data.labels "
            "out, or run examples.images.conditional, examples.images.hybrid or "
            "examples.images.classification"
        )
    if task.labelled and not data.labels:
        raise SetupError(
            f"data.labels false: {type(task).__name__} learns from labels; set data.labels to true"
        )


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks that change settings, since the run's record would not show the change."""
    for callback in callbacks:
        for finder, setting in FINDERS.items():
            if isinstance(callback, finder):
                raise SetupError(
                    f"trainer.callbacks {finder.__name__}: it changes a setting after trial runs, "
                    f"which config.yaml would not record; set {setting} instead"
                )


def check_tested_images(trainer: Trainer, data: ImageData) -> None:
    """Refuse a test of fewer than two images, whose mean has no standard error.

    Args:
        trainer: The trainer, with `limit_test_batches`.
        data: The data, set up.
    """
    size, limit = data.evaluation_batch_size, trainer.limit_test_batches
    batches = math.ceil(len(data.test_images) / size)
    batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if min(batches * size, len(data.test_images)) < 2:
        raise SetupError(
            f"trainer.limit_test_batches {limit}, data.evaluation_batch_size {size}: a test needs "
            "two images, for the standard error of their mean; to train without a test, use fit "
            "in place of fit_and_test"
        )


def check_epoch_position(trainer: Trainer, data: ImageData) -> None:
    """Refuse to resume in the middle of an epoch that has become shorter.

    Args:
        trainer: The trainer, with its batches of training images.
        data: The data, with the position of the checkpoint.
    """
    _, batch = data.start
    batches = trainer.num_training_batches
    if batch and batch >= batches:
        raise SetupError(
            f"trainer.limit_train_batches: the checkpoint is in the middle of an epoch, after "
            f"{batch} batches, and an epoch has {batches} now. Resume with as many batches as "
            "before, or from a checkpoint at the end of an epoch, such as best.ckpt"
        )


def check_monitors(trainer: Trainer, task: LightningModule) -> None:
    """Refuse callbacks and schedules that monitor a metric which is not logged.

    Args:
        trainer: The trainer, with the optimizers of the task.
        task: The task; its `metrics` names the values it logs.
    """
    callbacks = trainer.callbacks
    if not all(type(callback).__module__.startswith(KNOWN_PACKAGES) for callback in callbacks):
        return  # a user's callback may log anything
    monitors = [
        (f"trainer.callbacks {type(callback).__name__}", callback.monitor)
        for callback in callbacks
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None
    ]
    monitors += [
        (f"model.lr_scheduler {type(config.scheduler).__name__}", config.monitor)
        for config in trainer.lr_scheduler_configs
        if config.reduce_on_plateau
    ]
    known = {*task.metrics, "steps/skipped"}
    for owner, metric in monitors:
        if metric not in known:
            raise SetupError(
                f"{owner}: monitor {metric!r} is not logged; take one of "
                f"{', '.join(sorted(known))}"
            )
        if metric.endswith("/validation") and trainer.limit_val_batches == 0:
            raise SetupError(
                f"trainer.limit_val_batches 0: nothing is validated, but {owner} monitors {metric}"
            )


def check_weights(
    task: LightningModule, state: Mapping[str, Tensor], setting: str = "ckpt_path"
) -> None:
    """Refuse the weights of another model.

    Args:
        task: The task to load the weights into.
        state: The weights, by name.
        setting: The setting that names their file.
    """
    own, saved = (
        {name: tuple(tensor.shape) for name, tensor in weights.items()}
        for weights in (task.state_dict(), state)
    )
    different = [name for name in {**own, **saved} if own.get(name) != saved.get(name)]
    if different:
        name = different[0]
        raise SetupError(
            f"{setting}: the file's weights are not those of the model in the settings: "
            f"{name} has shape {saved.get(name, 'none')} there and {own.get(name, 'none')} here "
            f"({len(different)} differ). Take the settings of config.yaml in the folder of its run"
        )
