"""What is shown while a run goes on: a bar for its beginning, one for all of its training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.distributions import Transform
from tqdm import tqdm

# A model that is initialised sooner needs no bar.
PATIENCE = 2.0
PASSES = ("_call", "_inverse", "call_and_ladj", "inverse_and_ladj")


@contextmanager
def initialising(module: nn.Module, patience: float = PATIENCE) -> Iterator["tqdm[Any]"]:
    """Show how many layers of a flow the first batch has passed, with the seconds that each takes.

    Args:
        module: What contains the flow.
        patience: Seconds after which the bar appears.
    """
    layers = [part for part in module.modules() if _is_layer(part)]
    bar = tqdm(
        desc="initialising",
        total=len(layers),
        unit="layer",
        delay=patience,
        disable=rank_zero_only.rank != 0,
    )
    passed: set[nn.Module] = set()  # some layers are passed more than once
    patched = [(part, name) for part in layers for name in PASSES if hasattr(part, name)]
    try:
        for part, name in patched:
            vars(part)[name] = _counted(getattr(part, name), part, passed, bar)
        yield bar
    finally:
        for part, name in patched:
            vars(part).pop(name, None)
        bar.close()


def _is_layer(part: nn.Module) -> bool:
    """Whether this is a transform that no other transform is inside of."""
    _, *inside = part.modules()
    return isinstance(part, Transform) and not any(isinstance(p, Transform) for p in inside)


def _counted(
    method: Callable[..., Any], layer: nn.Module, passed: set[nn.Module], bar: "tqdm[Any]"
) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        result = method(*arguments)
        if layer not in passed:
            passed.add(layer)
            bar.update()
        return result

    return counted


class RunProgress(ProgressBar):
    """A bar over all steps of a run: epochs of small data sets are too short for one each."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning asks for it in all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the training bar, at the step a resumed run has reached."""
        self._open("training", trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance, and show the bits/dim."""
        assert self._bar is not None
        # Reading a metric waits for the device: only when the bar is drawn again.
        if self._bar.update(trainer.global_step - self._bar.n):
            self._bar.set_postfix_str(_bits(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the training bar."""
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the test bar."""
        self._open("testing", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance the test bar."""
        assert self._bar is not None
        self._bar.update()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the test bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the bar as it is, and the next line to what is said about it."""
        self._close()

    def _open(self, title: str, total: float, initial: int = 0) -> None:
        length = total if total != float("inf") else None
        self._bar = tqdm(
            desc=title,
            total=length,
            initial=initial,
            unit="step",
            disable=not self._enabled,
            mininterval=0.5,
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bits(trainer: Trainer) -> str:
    metrics = trainer.progress_bar_metrics
    shown = {"train": "bits/train_step", "validation": "bits/validation"}
    known = [f"{name} {metrics[key]:.3f}" for name, key in shown.items() if key in metrics]
    return "bits/dim " + ", ".join(known) if known else ""
