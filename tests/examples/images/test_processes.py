"""Training in two processes (DDP, gloo, on the CPU)."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from tests.examples.images.recording import Step, recorded
from tests.examples.images.test_survival import arguments

pytestmark = pytest.mark.slow

STEPS = 8
SETTINGS = {
    "trainer.limit_train_batches": "4",
    "trainer.max_epochs": "2",
    "safekeeping.every_n_steps": "3",
}
SHARED = {"trainer.accelerator": "cpu", "trainer.devices": "2", "trainer.strategy": "ddp"}
EXACT = {
    "trainer.precision": "64-true",
    "model.flow.init_args.logdet": "pyro_resflow.logdet.Exact",
    "trainer.callbacks+": "tests.examples.images.recording.FixedNoise",
}


def run(folder: Path, *happens: str, fails: bool = False, **settings: str) -> None:
    command = arguments(folder, *happens, **{**SETTINGS, **settings})
    done = subprocess.run(
        [sys.executable, "-m", "examples.images", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) is fails, done.stderr


def column(steps: dict[int, Step], name: str) -> list[str]:
    return [getattr(steps[step], name) for step in sorted(steps)]


def numbers(steps: dict[int, Step]) -> list[float]:
    return [float.fromhex(loss) for loss in column(steps, "loss")]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Step], dict[int, Step]]:
    folder = tmp_path_factory.mktemp("noisy")
    run(folder, **SHARED, **{"data.batch_size": "16"})
    return recorded(folder, rank=0), recorded(folder, rank=1)


def test_two_processes_have_the_losses_of_one_with_the_same_batches(tmp_path):
    """Where noise is a function of the image and the log-determinant exact, to rounding."""
    run(tmp_path / "one", **EXACT, **{"data.batch_size": "32"})
    run(tmp_path / "two", **EXACT, **SHARED, **{"data.batch_size": "16"})
    one = numbers(recorded(tmp_path / "one"))
    first, second = (numbers(recorded(tmp_path / "two", rank)) for rank in (0, 1))
    assert len(one) == STEPS
    assert first != second
    assert [(a + b) / 2 for a, b in zip(first, second, strict=True)] == pytest.approx(one, 1e-11)


def test_two_processes_have_the_same_weights_after_every_step(noisy):
    """Those that ActNorm has set, the vectors of the norms and the moving average too."""
    first, second = noisy
    assert len(first) == STEPS
    for name in ("weights", "buffers", "optimizer", "average"):
        assert column(first, name) == column(second, name)


def test_two_processes_draw_noise_of_their_own(noisy):
    first, second = (column(steps, "next_draw") for steps in noisy)
    assert len({*first, *second}) == 2 * STEPS


def test_two_processes_resume_each_with_its_own_noise(tmp_path, noisy):
    """To rounding: DDP writes to the weights it is given, so their norms are measured again."""
    run(tmp_path, "at=5", "event=SIGINT", fails=True, **SHARED, **{"data.batch_size": "16"})
    for rank in (0, 1):
        (tmp_path / f"record.{rank}").unlink()
    last = {"ckpt_path": str(tmp_path / "checkpoints" / "last.ckpt")}
    run(tmp_path, **SHARED, **last, **{"data.batch_size": "16"})
    for rank in (0, 1):
        expected = {step: line for step, line in noisy[rank].items() if step > 5}
        found = recorded(tmp_path, rank)
        assert column(found, "next_draw") == column(expected, "next_draw")
        assert numbers(found) == pytest.approx(numbers(expected), 1e-5)
