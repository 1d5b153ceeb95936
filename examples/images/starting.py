"""Start a run from weights in files: fine-tuning, without the state of an optimizer."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from examples.images.models import SAVED_CLASSES
from examples.images.run_errors import SetupError
from examples.images.setting_checks import check_weights
from examples.images.storage import read_checkpoint
from pyro_resflow import checkpoints

SETTING = "model.weights"


class HasParts(Protocol):
    """A task whose modules are saved in files of their names."""

    def parts(self) -> dict[str, nn.Module]:
        """Return the modules, by name."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights of all."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take other weights."""


def start_from(task: HasParts, path: Path) -> None:
    """Load weights into a task.

    Args:
        task: The task.
        path: A training checkpoint, or a `.safetensors` file of a run. The task's other modules
            that have weights are read from the files beside it.

    Raises:
        SetupError: If a file is missing or damaged, or has the weights of another model.
    """
    if not path.is_file():
        raise SetupError(f"{SETTING} {str(path)!r}: the file does not exist; name another one")
    if path.suffix == ".safetensors":
        state = _state_of_parts(task, path)
    else:
        state = read_checkpoint(path, SETTING)["state_dict"]
    check_weights(task, state, SETTING)
    task.load_state_dict(state)


def _state_of_parts(task: HasParts, path: Path) -> dict[str, Tensor]:
    """Read the weights of all parts of a task, under their names in the task."""
    parts = task.parts()
    if path.stem not in parts:
        files = [f"{name}.safetensors" for name in parts]
        expected = " or ".join(["a training checkpoint (.ckpt)", *files])
        raise SetupError(f"{SETTING} {str(path)!r}: expected {expected}")
    state: dict[str, Tensor] = {}
    for name, part in parts.items():
        if not part.state_dict():
            continue  # uniform noise has no weights
        file = path.with_stem(name)
        try:
            loaded = checkpoints.load(file, classes=_classes(part))
        except (checkpoints.CheckpointError, OSError) as error:
            raise SetupError(f"{SETTING}: {error}") from error  # the error names the file
        state.update({f"{name}.{key}": value for key, value in loaded.state_dict().items()})
    return state


def _classes(part: nn.Module) -> list[type]:
    """Return the classes, other than the package's, that the file of a part may name."""
    own = {type(module) for module in part.modules()}
    return [*SAVED_CLASSES, *(each for each in own if not _is_of_package(each))]


def _is_of_package(each: type) -> bool:
    return each in SAVED_CLASSES or each.__module__.partition(".")[0] in ("pyro_resflow", "torch")
