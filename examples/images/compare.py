"""Compare models with about as many parameters, trained on the same images for the same time.

The images are those of Fashion-MNIST, with each 2x2 pixels averaged into one of 256 grey levels:
60,000 training and 10,000 test images of 14x14. Adam trains each model in batches of 64 for the
same number of processor seconds; then its last weights are scored on all test images. The test
images decide nothing: no checkpoint, no learning rate. The curves are scores of the first 1,024
test images, whose time does not count as training.

    python -m examples.images.compare models                # every one without a result yet
    python -m examples.images.compare models --only '[glow]'
    python -m examples.images.compare anchor                # for the authors' Residual Flow
    python -m examples.images.compare maps                  # input maps, in short runs
    python -m examples.images.compare families              # learning rates of each family
    python -m examples.images.compare rates                 # settings of training, in short runs

Each result is kept in a file named after its model, with the command, the commit and the machine.
Every run writes the table and the two pictures from all results in the folder.
"""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from examples.atomic_files import write_whole
from examples.conditions import Conditions
from examples.images import weights
from examples.images.comparison import families as rates_of_families
from examples.images.comparison import input_maps
from examples.images.comparison import rates as learning_rates
from examples.images.comparison.clock import AtIntervals, AtSteps, Due
from examples.images.comparison.contenders import CONTENDERS, Contender, residual_flow
from examples.images.comparison.results import Result, load_all, save_samples, write_summary
from examples.images.comparison.training import (
    Protocol,
    SplitTrainingSet,
    Trained,
    WholeTrainingSet,
    train,
)
from examples.images.data import ImageData
from examples.images.run_errors import SetupError
from examples.images.sources import Averaged, FashionMnist, InMemory, Source
from examples.images.storage import check_writable
from examples.parsing import command_line
from pyro_resflow.transforms import Logit


def models(
    only: Sequence[str] | None = None,
    minutes: float = 10.0,
    points: int = 20,
    samples: int = 10,
    threads: int = 1,
    seed: int = 0,
    folder: Path = Path("runs/compare"),
    source: Source | None = None,
) -> None:
    """Train and score the models; write their results, a table and pictures.

    Args:
        only: The models to train; by default those without a result in the folder.
        minutes: Processor minutes of training for each model.
        points: Points of each learning curve.
        samples: Images to draw from each model.
        threads: Number of threads; their processor seconds add up.
        seed: Random seed.
        folder: Folder for all output.
        source: Images to use instead of Fashion-MNIST at 14x14, to try the program.
    """
    names = (
        only
        if only is not None
        else [n for n in CONTENDERS if not Result.path(folder, n).exists()]
    )
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise SetupError(f"only {unknown}: no such model; take some of {', '.join(CONTENDERS)}")
    data = _prepare_data(source, threads, folder)
    protocol = Protocol(budget=60 * minutes, seed=seed)
    others = [result for result in load_all(folder) if result.contender not in names]
    _check_comparable(others, str(data.source), protocol.budget)
    for name in names:
        print(f"{name}: {CONTENDERS[name].title}")
        due = partial(AtIntervals, protocol.budget, points)
        _run(name, CONTENDERS[name], data, protocol, due, samples, folder)
    print(write_summary(folder, data.bins))
    print(f"wrote {folder}")


def anchor(
    steps: Sequence[int] = (300, 600, 900, 1200),
    samples: int = 10,
    threads: int = 2,
    seed: int = 0,
    folder: Path = Path("runs/anchor"),
    source: Source | None = None,
) -> None:
    """Train the architecture on which the authors' code was measured, and score it on the way.

    The model is a Residual Flow with 2 and 2 blocks of 64 channels and 4 fully connected ones,
    298,087 parameters: the authors' code builds it for 2-2-2 blocks, since 14 pixels cannot be
    halved twice. Adam has a constant learning rate of 1e-3; weights are not averaged.

    Args:
        steps: Steps after which to score the first 1,024 test images; the last one ends the run.
        samples: Images to draw at the end.
        threads: Number of threads.
        seed: Random seed.
        folder: Folder for all output.
        source: Images to use instead of Fashion-MNIST at 14x14, to try the program.
    """
    data = _prepare_data(source, threads, folder)
    protocol = Protocol(steps=max(steps), warm_up=0, fall=0.0, tested=1024, seed=seed)
    title = "Residual Flow, the anchor's architecture"
    contender = Contender(title, residual_flow, input_map=lambda _: Logit(0.05, event_dim=3))
    due = partial(AtSteps, tuple(steps))
    result = _run("anchor", contender, data, protocol, due, samples, folder)
    write_summary(folder, data.bins)
    for point in result.curve:
        print(f"{point.step} steps, {point.seconds:.0f} s: {point.bits_per_dim:.3f} bits/dim")
    print(f"wrote {folder}")


def maps(
    steps: int = 300,
    samples: int = 10,
    threads: int = 1,
    seed: int = 0,
    folder: Path = Path("runs/input_maps"),
    source: Source | None = None,
) -> None:
    """Train a Residual Flow and a Real NVP with each of four input maps for a few steps.

    The maps are logits of three margins, and marginal Gaussianization. Runs that have a result in
    the folder are left out, and the table shows all of them.

    Args:
        steps: Number of steps. The learning rate rises in 50 of them and is constant then.
        samples: Images to draw at the end.
        threads: Number of threads.
        seed: Random seed.
        folder: Folder for all output; it may hold results of several sources.
        source: Images to use instead of Fashion-MNIST at 14x14.
    """
    data = _prepare_data(source, threads, folder)
    protocol = Protocol(steps=steps, warm_up=50, fall=0.0, tested=1024, seed=seed)
    for (name, title), contender in input_maps.contenders().items():
        run = f"{data.source} {name} {title}".replace(" ", "_").replace(",", "")
        if Result.path(folder, run).exists():
            continue
        print(f"{data.source}: {contender.title}")
        _run(run, contender, data, protocol, partial(AtSteps, ()), samples, folder)
    print(input_maps.table(load_all(folder)))
    print(f"wrote {folder}")


def rates(
    only: Sequence[str] | None = None,
    steps: int = 300,
    threads: int = 1,
    seeds: Sequence[int] = (0,),
    folder: Path = Path("runs/rates"),
    source: Source | None = None,
) -> None:
    """Train a Residual Flow for a few steps with many settings, which change one thing each.

    The scores are of images held out of the training images: no test image chooses a setting.
    Runs that have a result in the folder are left out. The table shows all runs of so many steps.

    Args:
        only: The settings to run; by default all.
        steps: Number of steps. Models of another size take as many operations as the base.
        threads: Number of threads.
        seeds: Random seeds.
        folder: Folder for all output.
        source: Images to use instead of Fashion-MNIST at 14x14, to try the program.
    """
    results = _run_settings(learning_rates.SETTINGS, only, steps, threads, seeds, folder, source)
    text = learning_rates.table(results, learning_rates.SETTINGS)
    write_whole(folder / f"table_{steps}_steps.md", text)
    print(text)
    print(f"wrote {folder}")


def families(
    only: Sequence[str] | None = None,
    steps: int = 300,
    threads: int = 1,
    seed: int = 0,
    folder: Path = Path("runs/families"),
    source: Source | None = None,
) -> None:
    """Train one model of each family for a few steps at several learning rates.

    The scores are of images held out of the training images: no test image chooses a rate. Runs
    that have a result in the folder are left out, and the table shows all of them.

    Args:
        only: The runs, such as `Real_NVP_0.001`; by default all.
        steps: Number of steps.
        threads: Number of threads.
        seed: Random seed.
        folder: Folder for all output.
        source: Images to use instead of Fashion-MNIST at 14x14, to try the program.
    """
    settings = rates_of_families.settings()
    results = _run_settings(settings, only, steps, threads, [seed], folder, source)
    text = rates_of_families.table(results, settings)
    write_whole(folder / f"table_{steps}_steps.md", text)
    print(text)
    print(f"wrote {folder}")


def _run_settings(
    settings: Sequence[learning_rates.Setting],
    only: Sequence[str] | None,
    steps: int,
    threads: int,
    seeds: Sequence[int],
    folder: Path,
    source: Source | None,
) -> list[Result]:
    """Run those settings that have no result in the folder, and return all results."""
    known = {each.name: each for each in settings}
    names = list(only if only is not None else known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SetupError(f"only {unknown}: no such setting; take some of {', '.join(known)}")
    data = SplitTrainingSet(_prepare_source(source, threads, folder), batch_size=64)
    others = {result.data for result in load_all(folder)} - {str(data.source)}
    if others:
        raise SetupError(f"folder: it holds runs on {', '.join(others)}; name another folder")
    for seed in seeds:
        for name in names:
            run = f"{name}_{steps}_steps_seed_{seed}"
            if not Result.path(folder, run).exists():
                _run_setting(run, known[name], data, steps, seed, folder)
    return [each for each in load_all(folder) if f"_{steps}_steps_seed_" in each.contender]


def _run_setting(
    run: str,
    setting: learning_rates.Setting,
    data: SplitTrainingSet,
    steps: int,
    seed: int,
    folder: Path,
) -> None:
    """Train with a setting, and keep the result alone: no weights and no samples."""
    print(f"{setting.label}, seed {seed}")
    conditions = Conditions.here("examples.images.compare")
    protocol, due = setting.protocol(data.event_shape, data.bins, steps, seed)
    trained = train(setting.contender, data, protocol, due)
    _result(run, setting.contender, data, protocol, trained, conditions).save(folder)
    print(trained.held_out)


def _prepare_data(source: Source | None, threads: int, folder: Path) -> WholeTrainingSet:
    return WholeTrainingSet(_prepare_source(source, threads, folder), batch_size=64)


def _prepare_source(source: Source | None, threads: int, folder: Path) -> InMemory:
    check_writable("folder", folder)
    torch.set_num_threads(threads)
    return InMemory(source if source is not None else Averaged(FashionMnist()))


def _check_comparable(results: Sequence[Result], data: str, budget: float) -> None:
    """Refuse results of other images or another duration."""
    for result in results:
        if (result.data, result.budget) != (data, budget):
            raise SetupError(
                f"folder: it holds {result.contender}, trained for {result.budget} seconds on "
                f"{result.data}, which is not comparable with {budget} seconds on {data}; name "
                "another folder"
            )


def _run(
    name: str,
    contender: Contender,
    data: WholeTrainingSet,
    protocol: Protocol,
    due: Callable[[], Due],
    samples: int,
    folder: Path,
) -> Result:
    """Train and score a contender, and keep its result, its weights and samples."""
    conditions = Conditions.here("examples.images.compare")
    trained = train(contender, data, protocol, due)
    result = _result(name, contender, data, protocol, trained, conditions)
    notes = {
        "data": result.data,
        "bins": str(data.bins),
        "result": str(trained.held_out),
        **conditions.notes(),
    }
    weights.save(folder / name, trained.task, notes)
    save_samples(folder, name, trained.task.distribution().sample((samples,)))
    result.save(folder)  # last, so that a result implies that all files are there
    print(trained.held_out)
    return result


def _result(
    name: str,
    contender: Contender,
    data: ImageData,
    protocol: Protocol,
    trained: Trained,
    conditions: Conditions,
) -> Result:
    """Return the result of a run."""
    return Result(
        contender=name,
        title=contender.title,
        data=str(data.source),
        budget=protocol.budget if math.isfinite(protocol.budget) else None,
        parameters=sum(parameter.numel() for parameter in trained.task.parameters()),
        steps=trained.steps,
        seconds=trained.seconds,
        bits_per_dim=trained.held_out.mean,
        standard_error=trained.held_out.standard_error,
        test_images=trained.held_out.images,
        curve=trained.curve,
        conditions=conditions,
    )


def main() -> None:
    """Run the command line."""
    try:
        command_line([models, anchor, maps, rates, families])
    except SetupError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
