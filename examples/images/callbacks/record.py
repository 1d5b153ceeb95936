"""The record of a run: its settings and their changes, in `config.yaml` and in checkpoints."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from examples.atomic_files import write_whole
from examples.images.callbacks.resumption import renew
from examples.images.run_errors import SetupError

Settings = dict[str, Any]
"""Values by the dotted names of their settings."""

NOT_OF_THE_RUN = ("ckpt_path", "weights_only", "trainer.default_root_dir")
"""Settings that say where a run is, not what it does."""

FIXED = {
    "seed_everything": "the random numbers go on where they were",
    "data.source": "the place in the order of the images would be that of others",
    "data.source.class_path": "the place in the order of the images would be that of others",
    "data.validation_fraction": "images that were trained on would be validated",
    "data.split_seed": "images that were trained on would be validated",
}
"""Settings that a resumed run cannot change, and why."""


class RunRecord(SaveConfigCallback):
    """Writes the settings of a fit, and lets a resumed one take new settings or refuses them.

    What a checkpoint holds of settings gives way to those of the resumed run: those of the
    optimizer and its schedule, see `resumption.renew`, and the patience of early stopping. What
    has changed, and at which step, stands at the head of `config.yaml` and in later checkpoints.
    A test in the same folder leaves the record alone.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        self.settings = {name: value for name, value in flat(dumped) if name not in NOT_OF_THE_RUN}
        self.history: list[dict[str, Any]] = []
        self._resumed: dict[str, Any] | None = None
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet: the run may be refused."""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the checkpoint of a run that goes on; let early stopping be as patient as set."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._resumed = checkpoint
        for callback in trainer.callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, EarlyStopping) and state is not None:
                state["patience"] = callback.patience

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the settings that have changed, before Lightning restores them; write all down."""
        if self._resumed is not None:
            self._go_on(trainer, pl_module, self._resumed)
            self._resumed = None
        # All processes must ask for the folder, and only the first writes.
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        super().setup(trainer, pl_module, "fit")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the settings and their changes into the checkpoint."""
        checkpoint["settings"] = self.settings
        checkpoint["settings_history"] = self.history

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the changes at the head of `config.yaml`."""
        path = self._folder / self.config_filename
        write_whole(path, "".join(said(self.history)) + path.read_text())

    def _go_on(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        before = checkpoint.get("settings")
        changed = changes(before, self.settings) if before is not None else {}
        refuse(changed)
        if before is None or any(is_of_optimizer(name) for name in changed):
            keep_rate = before is not None and "model.optimizer.init_args.lr" not in changed
            renew(trainer, pl_module, checkpoint, keep_rate=keep_rate)
        self.history = list(checkpoint.get("settings_history", []))
        if changed:
            self.history.append({"step": checkpoint["global_step"], "changed": changed})


def flat(settings: Mapping[str, Any] | list[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings by their dotted names; members of lists of settings by their number."""
    items = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
    for key, value in items:
        name = f"{prefix}{key}"
        groups = isinstance(value, list) and any(isinstance(each, Mapping) for each in value)
        if groups or (isinstance(value, Mapping) and value):
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def changes(before: Settings, now: Settings) -> dict[str, list[Any]]:
    """Return the old and the new value of each setting that has changed, by its name."""
    names = sorted(before.keys() | now.keys())
    pairs = {name: [before.get(name), now.get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def refuse(changed: Mapping[str, list[Any]]) -> None:
    """Raise a `SetupError` if one of the changed settings cannot change when a run goes on."""
    for name, (before, now) in changed.items():
        if name in FIXED:
            raise SetupError(
                f"{name} {now}: the checkpoint is of a run with {before}, which cannot change "
                f"({FIXED[name]}); leave it at {before}, or start a new run"
            )


def is_of_optimizer(name: str) -> bool:
    """Whether a setting is one of the optimizer or of its schedule."""
    return name.startswith(("model.optimizer", "model.lr_scheduler"))


def said(history: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line of comment for each change of a setting."""
    for entry in history:
        for name, (before, now) in entry["changed"].items():
            yield f"# resumed at step {entry['step']}: {name} was {before!r}, now {now!r}\n"
