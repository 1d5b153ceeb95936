"""Every configuration builds at full size on the meta device, and trains in a narrow copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from lightning import LightningModule
from torchvision.io import write_png

from examples.images import sources
from examples.images.classification import Classification
from examples.images.cli import BASE, ImageCLI, ImageTrainer, main
from examples.images.conditional import ConditionalEstimation
from examples.images.hybrid import HybridEstimation
from examples.images.sources import Digits
from examples.images.task import DensityEstimation
from pyro_resflow.transforms import AffineMap, Coupling, LogisticMixtureMap
from tests.versions import torch_is

FOLDER = Path("examples/images/configs")
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml")) if path.name != BASE.name}

PARAMETERS = {
    "residual_flow_mnist": 16.6e6,
    "residual_flow_cifar10": 25.2e6,
    "residual_flow_imagenet32": 47.1e6,
    "residual_flow_imagenet64": 53.3e6,
    "residual_flow_celebahq256": 136.8e6,
    "flow_plus_plus_cifar10": 31.4e6,
    "flow_plus_plus_imagenet32": 168_955_724,
    # 4 * 96 * 64 * 32 fewer than the authors' 73,489,960: positions that they allocate in each
    # coupling of a dequantizer without attention, and do not use.
    "flow_plus_plus_imagenet64": 73_489_960 - 4 * 96 * 64 * 32,
    "jet_imagenet64": 207_177_216,
    "real_nvp_cifar10": 6.4e6,
}
"""Parameters of the authors' networks, printed by their code or derived from it."""

NARROW = {
    "blocks": 1,
    "channels": 8,
    "components": 2,
    "couplings": 2,
    "depth": 1,
    "end_blocks": 1,
    "growth": 4,
    "hidden_channels": 8,
    "heads": 2,
    "hidden_dims": 8,
    "scales": 3,
    "steps": 1,
    "stem": 4,
}
"""Largest values of settings in the narrow copies, also of each item of a list."""


QUICK = {
    "flow_plus_plus_cifar10",
    "glow_cifar10",
    "i_densenet_cifar10",
    "i_resnet_cifar10_classifier",
    "i_resnet_mnist",
    "real_nvp_cifar10",
    "residual_flow_celebahq256",
    "residual_flow_cifar10_hybrid",
}
"""One configuration of each kind; the slow tests train narrow copies of the others."""


pytestmark = pytest.mark.usefixtures("no_arguments")


def task_of(name: str) -> type[LightningModule]:
    """What a configuration is for, by the end of its name."""
    ends = {
        "_hybrid": HybridEstimation,
        "_classifier": Classification,
        "_classes": ConditionalEstimation,
    }
    return next((task for end, task in ends.items() if name.endswith(end)), DensityEstimation)


def built(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ImageCLI:
    """What the command line makes of a configuration, on the meta device, without training it."""
    monkeypatch.setattr(ImageTrainer, "fit", lambda self, *_, **__: None)
    with torch.device("meta"):
        return main(
            [
                "fit",
                f"--config={config}",
                f"--trainer.default_root_dir={folder}",
                "--trainer.accelerator=cpu",
            ],
            task_of(config.stem),
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_builds_at_its_full_size(name, tmp_path, monkeypatch):
    cli = built(CONFIGS[name], tmp_path, monkeypatch)
    assert all(parameter.is_meta for parameter in cli.model.parameters())
    network = getattr(cli.model, "flow", None) or cli.model.network
    assert tuple(network.event_shape) == cli.datamodule.event_shape
    if name in PARAMETERS:
        found = sum(parameter.numel() for parameter in cli.model.parameters())
        assert found == pytest.approx(PARAMETERS[name], rel=0.02)


def test_every_count_belongs_to_a_configuration():
    assert set(PARAMETERS) | QUICK <= set(CONFIGS)


def test_the_folder_of_a_run_is_named_like_its_configuration():
    for name, path in CONFIGS.items():
        settings = yaml.safe_load(path.read_text())
        assert settings["trainer"]["default_root_dir"] == f"runs/{name}"


def resolved(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """All settings that the command line arrives at."""
    with pytest.raises(SystemExit) as end:
        main(["fit", *arguments, "--print_config"])
    assert not end.value.code
    return yaml.safe_load(capsys.readouterr().out)


def test_a_configuration_builds_on_the_base(capsys, tmp_path, monkeypatch):
    config = CONFIGS["residual_flow_digits"].resolve()
    monkeypatch.chdir(tmp_path)  # the base is found from any folder
    trainer = resolved(f"--config={config}", capsys=capsys)["trainer"]
    assert trainer["num_sanity_val_steps"] == 0  # of the base; Lightning's default is 2
    assert trainer["log_every_n_steps"] == 5  # of the configuration; the base has 10
    names = [callback["class_path"].rsplit(".")[-1] for callback in trainer["callbacks"]]
    assert names == ["RunProgress", "ModelCheckpoint", "WeightAverage", "EarlyStopping"]


def test_the_settings_of_a_run_are_read_again_as_they_were(capsys, tmp_path):
    settings = resolved(f"--config={CONFIGS['flow_plus_plus_cifar10']}", capsys=capsys)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert resolved(f"--config={path}", capsys=capsys) == settings


@pytest.mark.parametrize(("components", "kind"), [(0, AffineMap), (3, LogisticMixtureMap)])
def test_settings_of_older_runs_choose_the_map_by_a_number(
    components, kind, tmp_path, monkeypatch
):
    settings = yaml.safe_load(CONFIGS["flow_plus_plus_fashion_mnist"].read_text())
    step = settings["model"]["flow"]["init_args"]["step"]
    del step["elementwise"]
    step["components"] = components
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    cli = built(path, tmp_path, monkeypatch)
    couplings = [part for part in cli.model.modules() if isinstance(part, Coupling)]
    assert {type(coupling.elementwise) for coupling in couplings} == {kind}
    assert {getattr(c.elementwise, "components", 0) for c in couplings} == {components}


def test_a_configuration_repeats_no_setting_of_the_base():
    shared = yaml.safe_load(BASE.read_text())["trainer"]
    for path in CONFIGS.values():
        own = yaml.safe_load(path.read_text())["trainer"]
        assert not [name for name in shared if own.get(name) == shared[name]]


def test_a_missing_base_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("examples.images.cli.BASE", tmp_path / "base.yaml")
    with pytest.raises(SystemExit, match=f"^error: {tmp_path / 'base.yaml'} is missing"):
        main(["fit", f"--config={CONFIGS['residual_flow_digits']}"])


def narrowed(settings: Any, name: str = "") -> Any:
    """The same settings with small numbers of blocks and of channels."""
    if isinstance(settings, dict):
        return {key: narrowed(value, key) for key, value in settings.items()}
    if isinstance(settings, list):
        return [narrowed(value, name) for value in settings]
    is_number = not isinstance(settings, str)  # the kind of channels is a word
    return min(settings, NARROW[name]) if name in NARROW and is_number else settings


def pictures(folder: Path) -> Path:
    """Write a few photographs into a folder, and return it."""
    training, _ = sources.PhotoPatches().load()
    (folder / "pictures").mkdir()
    for index in range(40):
        write_png(training[index][0], str(folder / "pictures" / f"{index}.png"))
    return folder / "pictures"


def with_shipped_data(source: Any, labelled: bool, folder: Path) -> Any:
    """The source, with images that scikit-learn ships in place of those to be downloaded."""
    settings = source.get("init_args", {}) if isinstance(source, dict) else {}
    if "source" in settings:
        inner = with_shipped_data(settings["source"], labelled, folder)
        return {**source, "init_args": {**settings, "source": inner}}
    name = source["class_path"] if isinstance(source, dict) else source
    if name.endswith(".Folder"):
        return {**source, "init_args": {**settings, "root": str(pictures(folder))}}
    shape = getattr(getattr(sources, name.rsplit(".")[-1]), "event_shape", (3, 32, 32))
    if shape[0] == 1:
        return "examples.images.sources.Digits"
    if labelled:
        return "tests.examples.images.colours.ColouredDigits"
    size = min(shape[1], 64)
    return {"class_path": "examples.images.sources.PhotoPatches", "init_args": {"size": size}}


def small(config: Path, folder: Path) -> Path:
    """Write a narrow copy of a configuration that trains for two steps."""
    settings = narrowed(yaml.safe_load(config.read_text()))
    input_map = settings["model"].get("flow", {}).get("init_args", {}).get("input_map")
    if input_map is not None and "folder" not in config.stem:
        input_map["init_args"]["bins"] = Digits.bins
    settings["data"] |= {
        "source": with_shipped_data(
            settings["data"]["source"], settings["data"].get("labels", False), folder
        ),
        "batch_size": 4,
        "evaluation_batch_size": 8,
        "workers": 0,
    }
    settings["trainer"] |= {
        "default_root_dir": str(folder / "run"),
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 2,
        "val_check_interval": 1.0,
        "limit_val_batches": 1,
        "accumulate_grad_batches": 1,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS],
)
def test_a_narrow_copy_trains(name, tmp_path):
    if "MuonAndAdam" in CONFIGS[name].read_text() and not torch_is("2.9"):
        pytest.skip("torch before 2.9 has no Muon")
    cli = main(["fit", f"--config={small(CONFIGS[name], tmp_path)}"], task_of(name))
    assert cli.trainer.global_step == 2
    assert all(bool(parameter.isfinite().all()) for parameter in cli.model.parameters())
    monitored = cli.trainer.checkpoint_callback.monitor
    assert bool(cli.trainer.callback_metrics[monitored].isfinite())
