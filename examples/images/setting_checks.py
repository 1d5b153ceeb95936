"""Settings that do not go together: said before the first step, by the name of the setting."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
)

from examples.images.data import ImageData
from examples.images.run_errors import SetupError

HALF = ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")
"""Precisions whose weights have fewer than 32 bits: too few for norms and log-determinants."""

FINDERS = {BatchSizeFinder: "data.batch_size", LearningRateFinder: "model.optimizer.init_args.lr"}
"""Callbacks that change a setting in trial runs, and the setting."""

OWN = ("lightning.", "examples.images.")
"""Packages of callbacks that log nothing that a task does not name in its `metrics`."""


def check_precision(precision: Any) -> None:
    """Refuse weights of half precision."""
    if precision in HALF:
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


def check_decided(given: Mapping[str, Any], data: ImageData, links: Mapping[str, str]) -> None:
    """Refuse values of settings that the data decide, where the data decide otherwise.

    Args:
        given: Values that a configuration or the command line gives, by the setting.
        data: The data.
        links: What the data decide, by their name (`data.bins`) and that of the setting.
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
            "out, or run examples.images.hybrid or examples.images.classification"
        )
    if task.labelled and not data.labels:
        raise SetupError(
            f"data.labels false: {type(task).__name__} learns from labels; set data.labels to true"
        )


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks that change settings, of which the record of the run would not tell."""
    for callback in callbacks:
        for finder, setting in FINDERS.items():
            if isinstance(callback, finder):
                raise SetupError(
                    f"trainer.callbacks {finder.__name__}: it would train on trial, and change a "
                    f"setting that config.yaml would not record; set {setting} instead"
                )


def check_tested_images(trainer: Trainer, data: ImageData) -> None:
    """Refuse a test of fewer than two images, whose mean has no standard error.

    Args:
        trainer: Its `limit_test_batches` counts.
        data: The data, set up.
    """
    size, limit = data.evaluation_batch_size, trainer.limit_test_batches
    batches = math.ceil(len(data.test_images) / size)
    batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if min(batches * size, len(data.test_images)) < 2:
        raise SetupError(
            f"trainer.limit_test_batches {limit}, data.evaluation_batch_size {size}: a test needs "
            "two images, for the standard error of their mean; to leave it out, take fit in place "
            "of fit_and_test"
        )


def check_place(trainer: Trainer, data: ImageData) -> None:
    """Refuse to go on in the middle of an epoch that is shorter now.

    Args:
        trainer: The trainer, with its batches of training images.
        data: The data, which know where the run has been.
    """
    _, batch = data.start
    batches = trainer.num_training_batches
    if batch and batch >= batches:
        raise SetupError(
            f"trainer.limit_train_batches: the checkpoint is in the middle of an epoch, after "
            f"{batch} batches, and an epoch has {batches} now. Go on with as many as before, or "
            "from a checkpoint at the end of an epoch, such as best.ckpt"
        )


def check_monitors(trainer: Trainer, task: LightningModule) -> None:
    """Refuse to watch for metrics that nobody logs.

    Args:
        trainer: The trainer, with the optimizers of the task.
        task: What is trained; its `metrics` names what it logs.
    """
    callbacks = trainer.callbacks
    if not all(type(callback).__module__.startswith(OWN) for callback in callbacks):
        return  # a callback of one's own may log anything
    watching = [
        (f"trainer.callbacks {type(callback).__name__}", callback.monitor)
        for callback in callbacks
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None
    ]
    watching += [
        (f"model.lr_scheduler {type(config.scheduler).__name__}", config.monitor)
        for config in trainer.lr_scheduler_configs
        if config.reduce_on_plateau
    ]
    known = {*task.metrics, "steps/skipped"}
    for who, metric in watching:
        if metric not in known:
            raise SetupError(
                f"{who}: monitor {metric!r} is not logged; there are {', '.join(sorted(known))}"
            )
        if metric.endswith("/validation") and trainer.limit_val_batches == 0:
            raise SetupError(
                f"trainer.limit_val_batches 0: nothing is validated, and {who} monitors {metric}"
            )


def check_weights(task: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Refuse the weights of another model.

    Args:
        task: Where the weights are to go.
        checkpoint: Where they are.
    """
    own, saved = (
        {name: tuple(tensor.shape) for name, tensor in weights.items()}
        for weights in (task.state_dict(), checkpoint["state_dict"])
    )
    different = [name for name in {**own, **saved} if own.get(name) != saved.get(name)]
    if different:
        name = different[0]
        raise SetupError(
            f"ckpt_path: it holds the weights of another model than these settings describe: "
            f"{name} has shape {saved.get(name, 'none')} there and {own.get(name, 'none')} here "
            f"({len(different)} differ). Take the settings of config.yaml in the folder of its run"
        )
