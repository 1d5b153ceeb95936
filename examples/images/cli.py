"""The command line: a LightningCLI that takes the shape of the model from the data."""

import re
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from examples.conditions import resuming
from examples.images import quiet
from examples.images.callbacks import (
    FolderClaim,
    Monitoring,
    RandomStreams,
    Report,
    RunRecord,
    Safekeeping,
    SkipNonFinite,
)
from examples.images.data import ImageData
from examples.images.run_errors import EarlyEnd, Interrupted, SetupError
from examples.images.setting_checks import (
    check_accelerator,
    check_barebones,
    check_base,
    check_callbacks,
    check_checkpoint,
    check_labels,
    check_linked_settings,
    check_precision,
    check_unused,
)
from examples.images.storage import AtomicCheckpoints, check_writable
from examples.images.task import DensityEstimation, ImageTask
from examples.parsing import ShortErrors, nearest, shortened

CONFIGS = Path("examples/images/configs")
BASE = Path(__file__).parent / "configs" / "base.yaml"
"""Settings that all configurations share: every run reads them before its own."""


class ImageTrainer(Trainer):
    """A trainer with a command that fits and then tests.

    Attributes:
        tests_afterwards: Whether a test follows the fit.
    """

    tests_afterwards = False

    def fit_and_test(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Fit, then test the weights with the best validation score and write the report.

        Args:
            model: The task.
            datamodule: The images.
            ckpt_path: The checkpoint to resume from.
        """
        self.tests_afterwards = True
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        savers = [c for c in self.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        best = savers[0].best_model_path if savers else None
        try:
            self.test(model, datamodule=datamodule, ckpt_path=best or None, verbose=False)
        except SystemExit as end:
            if not isinstance(end.__context__, KeyboardInterrupt):
                raise
            saved = [c for c in self.checkpoint_callbacks if isinstance(c, Safekeeping)]
            last = (saved[0].last_model_path if saved else "") or ckpt_path
            raise Interrupted("stopped during the test", last, signal.SIGINT) from end


class ImageParser(ShortErrors, LightningArgumentParser):
    """Lightning's parser, with short errors."""

    def hints(self, message: str) -> Iterator[str]:
        """Yield corrections; for a missing configuration, say where configurations are."""
        yield from super().hints(message)
        if "required: " in message and ".model" in message:
            yield f"name a configuration: --config {CONFIGS / 'residual_flow_digits.yaml'}"
        if match := re.search(r"File does not exist: '.*?([^/]*)'", message):
            names = [path.name for path in CONFIGS.glob("*.yaml")]
            yield from nearest(match[1], names, lambda name: str(CONFIGS / name))
            yield f"configurations are in {CONFIGS}"


class ImageCLI(LightningCLI):
    """The command line of the image examples; all output goes to `trainer.default_root_dir`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Add `fit_and_test` to Lightning's subcommands."""
        return {**LightningCLI.subcommands(), "fit_and_test": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks of every run, and link settings of the model to the data."""
        parser.add_lightning_class_args(RandomStreams, "random_streams")
        parser.add_lightning_class_args(SkipNonFinite, "skip_non_finite")
        parser.add_lightning_class_args(Safekeeping, "safekeeping")
        if issubclass(self.model_class, DensityEstimation):
            parser.add_lightning_class_args(Report, "report")
        for source, target in self.model_class.links.items():
            parser.link_arguments(source, target, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the settings, note those that the data decide, and check the checkpoint."""
        self.given, args = extract_options(
            self.model_class.links.values(), sys.argv[1:] if args is None else args
        )
        self.config = parser.parse_args(args)
        # Without defaults, to tell given values from those that a class takes by default.
        given = parser.parse_args(args, defaults=False)
        for setting in self.model_class.links.values():
            if (value := given[given.subcommand].get(setting)) is not None:
                self.given[setting] = value
        path = self.config[self.config.subcommand].ckpt_path
        if path is not None:
            check_checkpoint(path)

    def before_instantiate_classes(self) -> None:
        """Check the run's folder and the trainer's settings before anything is loaded."""
        settings = self.config[self.subcommand]
        check_precision(settings.trainer.precision)
        check_barebones(settings.trainer.barebones)
        folder = Path(settings.trainer.default_root_dir)
        check_writable("trainer.default_root_dir", folder)
        check_accelerator(settings.trainer.accelerator)
        if settings.ckpt_path is None and self.subcommand in ("fit", "fit_and_test"):
            check_unused(folder)

    def instantiate_classes(self) -> None:
        """Turn the errors of constructors into errors of the settings."""
        try:
            super().instantiate_classes()
        except SetupError:
            raise
        except (ValueError, MisconfigurationException) as error:
            raise SetupError(shortened(str(error))) from error

    def after_instantiate_classes(self) -> None:
        """Check that the data, the model and the callbacks fit together."""
        check_linked_settings(self.given, self.datamodule, self.model_class.links)
        check_labels(self.model, self.datamodule)
        check_callbacks(self.trainer.callbacks)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """By default, log to the run's folder and write checkpoints atomically."""
        settings = self.config_init[self.subcommand].trainer
        if settings.logger is None:
            kwargs["logger"] = TensorBoardLogger(settings.default_root_dir, name="", version="")
        if settings.plugins is None:
            kwargs["plugins"] = [AtomicCheckpoints()]
        return super().instantiate_trainer(**kwargs)


def extract_options(settings: Iterable[str], args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Remove the settings that the data decide from a command line, whose parser refuses them.

    Args:
        settings: Names of the settings.
        args: The command line.

    Returns:
        The values given for the settings, and the rest of the command line.
    """
    given: dict[str, Any] = {}
    rest: list[str] = []
    waiting = iter(args)
    for argument in waiting:
        option, equals, value = argument.partition("=")
        setting = option.removeprefix("--")
        if option.startswith("--") and setting in settings and ".init_args." not in setting:
            given[setting] = yaml.safe_load(value if equals else next(waiting, ""))
        else:
            rest.append(argument)
    return given, rest


def main(args: list[str] | None = None, task: type[ImageTask] = DensityEstimation) -> ImageCLI:
    """Run the command line.

    Args:
        args: The arguments; by default those of the process.
        task: The task to learn; its `links` name the settings that the data decide.

    Returns:
        The command line, with its trainer and its model.
    """
    quiet.silence()
    try:
        check_base(BASE)
        return ImageCLI(
            task,
            ImageData,
            trainer_class=ImageTrainer,
            trainer_defaults={
                "default_root_dir": "runs/images",
                # Estimators need gradients, and training uses weights cached in validation.
                "inference_mode": False,
                "callbacks": [FolderClaim(), Monitoring()],
            },
            save_config_callback=RunRecord,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"python -m {task.program}",
                **{name: {"default_config_files": [str(BASE)]} for name in ImageCLI.subcommands()},
            },
            parser_class=ImageParser,
            auto_configure_optimizers=False,
            # It would make the model refer to this object, so that copies of the model copy both.
            load_from_checkpoint_support=False,
            args=args,
        )
    except Interrupted as stop:
        rank_zero_only(print)(f"{stop}{_resume_hint(stop, task, args)}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except EarlyEnd as error:
        sys.exit(f"error: {error}{_resume_hint(error, task, args)}")
    except MisconfigurationException as error:  # from Lightning, names its arguments
        sys.exit(f"error: {error}")


def _resume_hint(end: EarlyEnd, task: type[ImageTask], args: list[str] | None) -> str:
    if end.checkpoint is None:
        return ""
    arguments = sys.argv[1:] if args is None else args
    return f"\nto resume: {resuming(task.program, arguments, end.checkpoint)}"
