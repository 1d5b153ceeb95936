"""The record of a run: its settings and their changes, in `config.yaml` and checkpoints."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from examples.atomic_files import write_whole
from examples.images.callbacks.resumption import renew_optimizer_state
from examples.images.run_errors import SetupError

Settings = dict[str, Any]
"""Values of settings by their dotted names."""

LOCATION_SETTINGS = ("ckpt_path", "weights_only", "trainer.default_root_dir")
"""Settings of where a run is stored, which may change."""

FIXED_SETTINGS = {
    "seed_everything": "the random numbers continue from the checkpoint",
    "data.source": "the position in the order of the images would be wrong",
    "data.source.class_path": "the position in the order of the images would be wrong",
    "data.validation_fraction": "training images would become validation images",
    "data.split_seed": "training images would become validation images",
}
"""Settings that a resumed run cannot change, and why."""


class RunRecord(SaveConfigCallback):
    """Writes the settings of a fit, and applies or refuses the new settings of a resumed one.

    The settings of the resumed run replace those in the checkpoint: of the optimizer and its
    schedule, see `renew_optimizer_state`, and the patience of early stopping. The top of
    `config.yaml` and later checkpoints list the changes with their step. A test in the same folder
    does not change the record.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        self.settings = {
            name: value for name, value in flatten(dumped) if name not in LOCATION_SETTINGS
        }
        self.history: list[dict[str, Any]] = []
        self._resumed: dict[str, Any] | None = None
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet, since the run may be refused."""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the checkpoint of a resumed run; apply the patience set for early stopping."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._resumed = checkpoint
        for callback in trainer.callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, EarlyStopping) and state is not None:
                state["patience"] = callback.patience

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply changed settings before Lightning restores the old ones, and write the record."""
        if self._resumed is not None:
            self._resume(trainer, pl_module, self._resumed)
            self._resumed = None
        # A broadcast: all processes must ask for the folder. Only the first one writes.
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        super().setup(trainer, pl_module, "fit")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the settings and their changes into the checkpoint."""
        checkpoint["settings"] = self.settings
        checkpoint["settings_history"] = self.history

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the changes at the top of `config.yaml`."""
        path = self._folder / self.config_filename
        write_whole(path, "".join(history_comments(self.history)) + path.read_text())

    def _resume(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        before = checkpoint.get("settings")
        changed = changed_settings(before, self.settings) if before is not None else {}
        check_changes(changed)
        if before is None or any(is_optimizer_setting(name) for name in changed):
            keep_rate = before is not None and not any(map(is_rate, changed))
            renew_optimizer_state(trainer, pl_module, checkpoint, keep_rate=keep_rate)
        self.history = list(checkpoint.get("settings_history", []))
        if changed:
            self.history.append({"step": checkpoint["global_step"], "changed": changed})


def flatten(
    settings: Mapping[str, Any] | list[Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the settings by their dotted names; items of lists of settings by their index."""
    items = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
    for key, value in items:
        name = f"{prefix}{key}"
        groups = isinstance(value, list) and any(isinstance(each, Mapping) for each in value)
        if groups or (isinstance(value, Mapping) and value):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def changed_settings(before: Settings, now: Settings) -> dict[str, list[Any]]:
    """Return the old and the new value of each setting that has changed, by its name."""
    names = sorted(before.keys() | now.keys())
    pairs = {name: [before.get(name), now.get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def check_changes(changed: Mapping[str, list[Any]]) -> None:
    """Raise a `SetupError` if a resumed run cannot change one of the settings."""
    for name, (before, now) in changed.items():
        if name in FIXED_SETTINGS:
            raise SetupError(
                f"{name} {now}: the checkpoint's run has {before}, which resuming cannot change "
                f"({FIXED_SETTINGS[name]}); leave it at {before}, or start a new run"
            )


def is_optimizer_setting(name: str) -> bool:
    """Return whether a setting belongs to the optimizer or its schedule."""
    return name.startswith(("model.optimizer", "model.lr_scheduler"))


def is_rate(name: str) -> bool:
    """Return whether a setting is a learning rate of the optimizer."""
    return name.startswith("model.optimizer.init_args.") and name.endswith("lr")


def history_comments(history: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a YAML comment for each changed setting."""
    for entry in history:
        for name, (before, now) in entry["changed"].items():
            yield f"# resumed at step {entry['step']}: {name} was {before!r}, now {now!r}\n"
