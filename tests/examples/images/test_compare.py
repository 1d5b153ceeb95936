"""The comparison: its clock, its results, and a run of each kind on a few small images."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from torch.utils.data import TensorDataset

from examples.conditions import Conditions
from examples.images import compare, weights
from examples.images.comparison import clock as timing
from examples.images.comparison import input_maps, results
from examples.images.comparison.contenders import CONTENDERS, Contender, residual_flow
from examples.images.comparison.training import Protocol, WholeTrainingSet, train
from examples.images.run_errors import SetupError
from examples.images.sources import (
    Averaged,
    Digits,
    FashionMnist,
    InMemory,
    Portion,
    Source,
    stacked,
)
from examples.images.task import DensityEstimation
from pyro_resflow.checkpoints import info
from pyro_resflow.flows import ConvBlock, RealNVP, ResidualFlow
from pyro_resflow.logdet import Krylov
from pyro_resflow.nn import LipschitzMLP, ResidualConditioner
from pyro_resflow.transforms import MarginalGaussianization, temporary_logdet

SHAPE = Averaged(FashionMnist()).event_shape


class FewDigits(Source):
    event_shape = Digits.event_shape
    bins = Digits.bins

    def load(self) -> tuple[Portion, Portion]:
        training, test = Digits().load()
        return TensorDataset(*training[:160]), TensorDataset(*test[:40])


def tiny(shape: tuple[int, ...], **options: Any) -> ResidualFlow:
    return ResidualFlow(shape, (1,), network=ConvBlock(4), end_blocks=0, **options)


def batch_normalised(shape: tuple[int, ...], **options: Any) -> RealNVP:
    return RealNVP(shape, scales=2, network=ResidualConditioner(2, blocks=1), **options)


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contenders that train in no time."""
    few = {
        "first": Contender("The first one", batch_normalised),
        "second": Contender("The second one", tiny),
    }
    monkeypatch.setattr(compare, "CONTENDERS", few)
    monkeypatch.setattr(compare, "residual_flow", tiny)
    monkeypatch.setattr("sys.argv", ["compare", "models"])


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A watch that is set by hand."""
    watch = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing.time, "process_time", lambda: watch.now)
    return watch


def test_a_clock_counts_only_while_it_runs(ticks):
    clock = timing.Clock(budget=10.0)
    clock.start()
    ticks.now = 3.0
    assert clock.elapsed() == 3.0
    clock.stop()
    ticks.now = 100.0
    assert clock.elapsed() == clock.seconds == 3.0
    clock.start()
    ticks.now = 102.0
    assert clock.elapsed() == 5.0


def test_the_learning_rate_rises_with_steps_and_falls_with_time(ticks):
    clock = timing.Clock(budget=10.0)
    schedule = timing.Schedule(clock, warm_up=4, fall=0.5)
    clock.start()
    assert [schedule(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    for now, factor in ((5.0, 1.0), (7.5, 0.5), (9.0, 0.2), (11.0, 0.0)):
        ticks.now = now
        assert schedule(100) == pytest.approx(factor)
    assert timing.Schedule(clock, warm_up=0, fall=0.0)(0) == 1.0


def test_points_are_due_once_for_each_part_of_the_budget():
    due = timing.AtIntervals(budget=10.0, points=5)
    seconds = [0.5, 1.9, 2.0, 2.1, 6.5, 6.6, 7.9, 8.0, 10.0]
    assert [second for second in seconds if due(0, second)] == [2.0, 6.5, 8.0, 10.0]


def test_points_are_due_at_steps():
    due = timing.AtSteps((3, 5))
    assert [step for step in range(7) if due(step, 0.0)] == [3, 5]


def test_a_score_is_of_the_module_at_rest_and_always_the_same():
    class Task(torch.nn.Module):
        device = torch.device("cpu")
        flow = torch.nn.Identity()

        def bits_per_dim(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return images + torch.rand(len(images))

    task = Task().train()
    state = torch.get_rng_state()
    images = torch.arange(7.0)
    first = timing.score(task, images, batch_size=3, seed=0)
    assert torch.equal(first, timing.score(task, images, batch_size=3, seed=0))
    assert not torch.equal(first, timing.score(task, images, batch_size=3, seed=1))
    assert first.floor().tolist() == list(range(7))
    assert task.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_are_of_one_size(name):
    with torch.device("meta"):
        parts = CONTENDERS[name].build(SHAPE, 256), CONTENDERS[name].dequantizer(SHAPE, 256)
    found = sum(p.numel() for part in parts for p in part.parameters())
    assert found == pytest.approx(300_000, rel=0.1)


class Noise(Source):
    """A few images of the size that is compared, of no use."""

    event_shape = SHAPE

    def load(self) -> tuple[Portion, Portion]:
        images = torch.randint(0, 256, (64, *SHAPE), dtype=torch.uint8)
        return TensorDataset(images), TensorDataset(images[:8])


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_takes_a_step_and_draws(name):
    if "muon" in name and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9")
    data = WholeTrainingSet(InMemory(Noise()), batch_size=8)
    protocol = Protocol(steps=1, scored=4, fall=0.0)
    trained = train(CONTENDERS[name], data, protocol, lambda: timing.AtSteps((1,)))
    assert math.isfinite(trained.held_out.mean)
    samples = trained.task.distribution().sample((2,))
    assert samples.shape == (2, *SHAPE)
    assert 0 <= samples.min() <= samples.max() <= 255


def test_scores_are_unbiased_whatever_the_training():
    task = DensityEstimation(CONTENDERS["i_resnet"].build(SHAPE, 256), 256)
    images = torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8)
    with torch.no_grad():
        task.bits_per_dim(images)
        for block in task.flow.modules():
            if isinstance(block, LipschitzMLP):
                for weight in block.parameters():
                    weight.mul_(3)
    unbiased = timing.score(task, images, 40, seed=0)
    with temporary_logdet(task.flow, Krylov()):
        assert torch.equal(unbiased, timing.score(task, images, 40, seed=0))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        biased = task.eval().bits_per_dim(images)
    assert (biased - unbiased).abs().max() > 1e-4


def test_the_anchor_is_as_large_as_the_authors_flow():
    with torch.device("meta"):
        flow = residual_flow(SHAPE)
    assert sum(p.numel() for p in flow.parameters()) == 298_087


def test_a_run_ends_when_its_time_is_up(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(timing, "time", SimpleNamespace(process_time=lambda: 0.01 * next(ticks)))
    data = WholeTrainingSet(InMemory(FewDigits()), batch_size=32)
    protocol = Protocol(budget=0.4, scored=10, warm_up=0)
    trained = train(Contender("", tiny), data, protocol, lambda: timing.AtIntervals(0.4, 2))
    assert trained.seconds == pytest.approx(0.4, abs=0.05)
    assert [point.seconds for point in trained.curve] == pytest.approx([0.2, 0.4], abs=0.05)
    assert 0 < trained.curve[0].step < trained.curve[1].step == trained.steps
    assert trained.held_out.images == 40
    with torch.no_grad():
        bits = timing.score(trained.task, data.scored_images(), 256, seed=1)
    assert trained.held_out.mean == pytest.approx(bits.mean().item())


def test_all_training_images_are_trained_on():
    data = WholeTrainingSet(FewDigits())
    data.setup()
    assert len(data.training_images) == 160
    assert len(data.scored_images()) == 40
    assert torch.equal(data.scored_images(3), data.scored_images()[:3])


def test_a_seed_reproduces_a_run():
    def weights() -> dict[str, torch.Tensor]:
        data = WholeTrainingSet(InMemory(FewDigits()), batch_size=32)
        protocol = Protocol(steps=3, scored=10, fall=0.0)
        due = timing.AtSteps((2,))
        return train(Contender("", tiny), data, protocol, lambda: due).task.state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("_few")
def test_models_without_a_result_are_run_and_shown(tmp_path, capsys):
    settings = {"minutes": 0.002, "points": 2, "threads": 1, "samples": 3, "source": FewDigits()}
    compare.models(only=["second"], folder=tmp_path, **settings)
    before = (tmp_path / "second.json").read_text()
    compare.models(folder=tmp_path, **settings)
    assert (tmp_path / "second.json").read_text() == before
    assert "first: The first one" in capsys.readouterr().out
    found = {result.contender: result for result in results.load_all(tmp_path)}
    assert set(found) == {"first", "second"}
    first = found["first"]
    assert first.test_images == 40
    assert first.conditions.threads == 1
    assert first.conditions.torch == torch.__version__
    assert np.load(tmp_path / "first.samples.npy").shape == (3, 1, 8, 8)
    kept = weights.load(tmp_path / "first")
    assert sum(p.numel() for p in kept.parameters()) == first.parameters
    bits = timing.score(kept, stacked(FewDigits().load()[1]), 256, seed=1)
    assert bits.mean().item() == pytest.approx(first.bits_per_dim)
    assert f"commit: {first.conditions.commit}" in str(info(tmp_path / "first" / weights.FLOW))
    table = (tmp_path / "table.md").read_text()
    assert f"{first.bits_per_dim:.3f} ± {first.standard_error:.3f}" in table
    for picture in ("samples.png", "learning_curves.png"):
        assert (tmp_path / picture).stat().st_size > 0


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("other", [{"minutes": 0.004}, {"source": Noise()}])
def test_results_that_do_not_compare_are_not_mixed(other, tmp_path):
    settings = {"minutes": 0.002, "points": 1, "threads": 1, "samples": 1, "source": FewDigits()}
    compare.models(only=["second"], folder=tmp_path, **settings)
    with pytest.raises(
        SetupError, match=r"folder: it holds second, trained for 0\.12 seconds on "
    ):
        compare.models(only=["first"], folder=tmp_path, **{**settings, **other})
    compare.models(only=["second"], folder=tmp_path, **{**settings, **other})


@pytest.mark.usefixtures("_few")
def test_what_stopped_half_way_has_no_result(tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "save_samples", stop)
    settings = {"minutes": 0.002, "points": 1, "threads": 1, "samples": 1, "source": FewDigits()}
    with pytest.raises(KeyboardInterrupt):
        compare.models(only=["second"], folder=tmp_path, **settings)
    assert results.load_all(tmp_path) == []


@pytest.mark.usefixtures("_few")
def test_the_anchor_is_scored_at_its_steps(tmp_path, capsys):
    compare.anchor(steps=(1, 3), threads=1, samples=2, folder=tmp_path, source=FewDigits())
    result = results.Result.load(tmp_path / "anchor.json")
    assert [point.step for point in result.curve] == [1, 3]
    assert result.steps == 3
    assert f"3 steps, {result.curve[1].seconds:.0f} s:" in capsys.readouterr().out


@pytest.mark.usefixtures("_few")
def test_input_maps_are_compared_and_kept_results_are_not_computed_again(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        input_maps, "MODELS", {"real_nvp": Contender("Real NVP", batch_normalised)}
    )
    monkeypatch.setattr(input_maps, "ALPHAS", ())
    settings = {"steps": 2, "samples": 2, "folder": tmp_path, "source": FewDigits()}
    compare.maps(**settings)
    name = "FewDigits_real_nvp_marginal_Gaussianization"
    result = results.Result.load(tmp_path / f"{name}.json")
    flow = weights.load(tmp_path / name).flow
    expected = MarginalGaussianization(17)
    expected.fit((stacked(FewDigits().load()[0]) + 0.5) / 17)  # all 160 training images
    torch.testing.assert_close(flow.encoder.parts[0].logits, expected.logits)
    monkeypatch.setattr(compare, "_run", None)
    compare.maps(**settings)
    table = capsys.readouterr().out.split("wrote")[1]
    assert "| images | model | marginal Gaussianization |" in table
    assert f"| {result.bits_per_dim:.3f} |\n" in table


def test_an_unknown_model_is_named(tmp_path):
    with pytest.raises(SetupError, match=r"only \['gan'\]: no such model; take some of real_nvp"):
        compare.models(only=["gan"], folder=tmp_path, source=FewDigits())


RESULT = results.Result(
    contender="a",
    title="Model A",
    data="images",
    budget=600.0,
    parameters=300_123,
    steps=2000,
    seconds=600.4,
    bits_per_dim=3.14159,
    standard_error=0.0123,
    test_images=10_000,
    curve=[timing.Point(10, 1.5, 4.0), timing.Point(20, 3.0, 3.5)],
    conditions=Conditions("python", "abc", "machine", 2, 1, "2"),
)


def test_a_result_is_kept(tmp_path):
    RESULT.save(tmp_path)
    assert results.Result.load(tmp_path / "a.json") == RESULT
    assert json.loads((tmp_path / "a.json").read_text())["curve"][1]["bits_per_dim"] == 3.5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        json.dumps({**dataclasses.asdict(RESULT), "more": 1}).encode(),
        json.dumps({**dataclasses.asdict(RESULT), "curve": [1]}).encode(),
        json.dumps({**dataclasses.asdict(RESULT), "bits_per_dim": "3"}).encode(),
        json.dumps({**dataclasses.asdict(RESULT), "seconds": float("nan")}).encode(),
    ],
)
def test_a_file_that_is_no_result_is_named(content, tmp_path):
    RESULT.save(tmp_path)
    (tmp_path / "b.json").write_bytes(content)
    with pytest.raises(SetupError, match=r"folder: .*b\.json cannot be read"):
        results.load_all(tmp_path)


def test_missing_and_damaged_samples_are_named(tmp_path):
    with pytest.raises(SetupError, match=r"a\.samples\.npy cannot be read: .*No such file"):
        results.samples_of_all(tmp_path, [RESULT], 17)
    (tmp_path / "a.samples.npy").write_bytes(b"no array")
    with pytest.raises(SetupError, match=r"a\.samples\.npy cannot be read"):
        results.samples_of_all(tmp_path, [RESULT], 17)


def test_the_best_comes_first(tmp_path):
    better = dataclasses.replace(RESULT, contender="b", title="Model B", bits_per_dim=3.0)
    for result in (RESULT, better):
        result.save(tmp_path)
    *_, first, second = results.table(results.load_all(tmp_path)).splitlines()
    assert first.startswith("| Model B |")
    assert second == "| Model A | 300,123 | 2,000 | 600 | 300 | 3.142 ± 0.012 |"


def test_no_two_curves_look_alike():
    named = [dataclasses.replace(RESULT, title=title) for title in CONTENDERS]
    for axis in results.learning_curves(named).axes:
        looks = {(line.get_color(), line.get_linestyle()) for line in axis.lines}
        assert len(looks) == len(CONTENDERS)


def test_curves_and_samples_are_those_of_the_results(tmp_path):
    steps, seconds = (axis.lines[0] for axis in results.learning_curves([RESULT]).axes)
    assert seconds.get_label() == "Model A"
    assert steps.get_xydata().tolist() == [[10, 4.0], [20, 3.5]]
    assert seconds.get_xydata().tolist() == [[1.5, 4.0], [3.0, 3.5]]
    results.save_samples(tmp_path, "a", torch.full((2, 1, 4, 4), 16))
    axis = results.samples_of_all(tmp_path, [RESULT], bins=17).axes[0]
    assert axis.get_title("left") == "Model A: 3.142 bits/dim"
    assert np.array(axis.images[0].get_array())[4:68, 4:68].min() == 1.0
