"""The speed benchmark computes its figures correctly; no test depends on a clock."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

pytest.importorskip("normflows")
pytest.importorskip("torchflows")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from matplotlib.figure import Figure

from benchmarks.operations import SIZES, Size
from benchmarks.speed.__main__ import main
from benchmarks.speed.chart import bars, curves
from benchmarks.speed.contenders import (
    BRUTE_FORCE,
    CONTENDERS,
    EXACT,
    KEEP,
    PLAIN,
    RECOMPUTE,
    REDUCED,
    UNREDUCED,
    Contender,
    plain_network,
)
from benchmarks.speed.equality import check_same_function, equal_models
from benchmarks.speed.findings import AtLeast, AtMost, Findings, Measurement, Row, ratio
from benchmarks.speed.fitted import largest_singular_value
from benchmarks.speed.groups import GROUPS
from benchmarks.speed.groups.inverse import LIPSCHITZ, places_along, scaled
from benchmarks.speed.groups.memory import slope
from benchmarks.speed.groups.scaling import along, last_exponent
from benchmarks.speed.groups.variance import gradients
from benchmarks.speed.groups.vectors import faster
from benchmarks.speed.marks import MARK, caveat, footnotes, marked
from benchmarks.speed.memory import LIVE, peak_above_now, peak_memory
from benchmarks.speed.other_checkout import OtherCheckout
from benchmarks.speed.plan import FULL, QUICK
from benchmarks.speed.timing import sampled
from benchmarks.speed.vector_flows import (
    AFFINE,
    MAF,
    NORMFLOWS,
    NSF,
    OURS,
    SPLINE,
    VECTOR_CONTENDERS,
    VectorContender,
    parameters_of,
)
from benchmarks.speed.workloads import Workload
from pyro_resflow.nn import Chain

CPU = torch.device("cpu")
IMAGES = Workload("images", (2, 5, 5), (6, 4), blocks=2, batch=3)
VECTORS = Workload("vectors", (2,), (5, 6), blocks=2, batch=4)


class Quick(SimpleNamespace):
    """What a smoke run found and wrote."""

    found: Findings
    content: dict
    folder: Path


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Quick:
    """Every group but memory, whose processes take seconds each."""
    folder = tmp_path_factory.mktemp("bench")
    groups = [name for name in GROUPS if name != "memory"]
    found = main(["--quick", "--rows", *groups, "--folder", str(folder)])
    content = json.loads((folder / "bench.json").read_text())
    return Quick(found=found, content=content, folder=folder)


def test_quick_run_writes_table_data_and_chart(quick: Quick) -> None:
    assert (quick.folder / "bench.png").stat().st_size > 10_000
    page = (quick.folder / "bench.md").read_text()
    assert all(row.figure in page for row in quick.found.rows)
    assert quick.content["machine"]["normflows"] == "1.7.3"
    assert quick.content["machine"]["torchflows"] == "1.2.1"
    assert quick.content["machine"]["threads"] == str(torch.get_num_threads())
    assert [row["figure"] for row in quick.content["rows"]] == [r.figure for r in quick.found.rows]


def test_every_figure_with_a_target_is_there(quick: Quick) -> None:
    starts = [
        "training step, 1x4x4, 4 wide: keep, times as fast as normflows with reduce_memory",
        "training step, 1x4x4, 4 wide: recompute, times as fast as normflows with reduce_memory",
        "training step, 1x4x4, 4 wide: keep, in forward and backward passes of the plain network",
        "training step, 1x4x4, 4 wide: recompute, in forward and backward passes of the plain",
        "log_prob of held-out data: times as fast",
        "log_prob of held-out data: truncation error",
        "evaluations for the inverse to 1e-06 at Lipschitz 0.9",
        "sampling at Lipschitz 0.9: times as fast as normflows, which stops earlier",
        "variance of the log-determinant at 4 vjps: truncation's share",
        "variance of the gradient at 4 vjps: share of that of power series, 2 + Poisson(2)",
        "training step of an own network, 1x4x4, 4 wide, 4 blocks: times as fast as normflows",
        "training step of an own network, 1x4x4, 4 wide, 4 blocks: in forward and backward passes",
        "update of all norms, 1x4x4, 4 wide: share of a training step, keep",
        "cost against depth: exponent, pyro-resflow, keep",
        "cost against batch: exponent, pyro-resflow, recompute",
    ]
    with_target = {row.figure: row for row in quick.found.rows if row.must is not None}
    for start in starts:
        assert any(figure.startswith(start) for figure in with_target), start
    assert all(math.isfinite(row.reached) for row in quick.found.rows)


def test_flows_of_vectors_are_timed_and_drawn(quick: Quick) -> None:
    assert (quick.folder / "vectors.png").stat().st_size > 10_000
    step = "step of vectors, 2-d, 2 blocks of [4], batch 16, fast in density"
    names = [m.contender for m in quick.found.measurements if m.group == step]
    assert names == [c.name for c in VECTOR_CONTENDERS]
    medians = {m.contender: m.median for m in quick.found.measurements if m.group == step}
    figure = f"{step}: {NSF.name}, in steps of the plain network"
    (reached,) = [row.reached for row in quick.found.rows if row.figure == figure]
    assert reached == medians[NSF.name] / medians[PLAIN.name]
    groups = {m.group for m in quick.found.measurements}
    for fast in ("density", "sampling"):
        flow = f"2-d, 2 blocks of [4], batch 16, fast in {fast}"
        assert f"5 samples without gradients, {flow}" in groups
        assert f"5 log-densities without gradients, {flow}" in groups


def test_measurements_hold_every_run(quick: Quick) -> None:
    timed = [m for m in quick.found.measurements if m.unit in ("s", "steps/s")]
    assert {len(m.values) for m in timed} == {QUICK.repeats}
    assert all(value > 0 for m in timed for value in m.values)
    written = quick.content["measurements"]
    assert [tuple(m["values"]) for m in written] == [m.values for m in quick.found.measurements]


def test_the_full_plan_is_that_of_the_table() -> None:
    assert FULL.repeats >= 7
    assert [(w.event_shape, w.hidden, w.blocks, w.batch) for w in FULL.images] == [
        ((1, 28, 28), (64, 64), 8, 16),
        ((4, 14, 14), (256, 256), 8, 16),
    ]
    assert FULL.vectors == SIZES
    assert (FULL.toy.blocks, FULL.toy.widths) == (100, [2, 128, 128, 128, 128, 2])


@pytest.mark.parametrize("workload", [IMAGES, VECTORS], ids=lambda w: w.name)
def test_models_are_the_same_density(workload: Workload) -> None:
    contenders = [c for c in CONTENDERS.values() if workload is VECTORS or c is not BRUTE_FORCE]
    models = equal_models(contenders, workload, CPU)
    x = workload.data()
    expected = x
    for net in models[EXACT.name].networks:
        expected = expected + net(expected)
    for model in models.values():
        z = x
        for net in model.networks:
            z = z + net(z)
        torch.testing.assert_close(z, expected, atol=1e-5, rtol=0)


def test_exact_log_densities_agree_with_normflows() -> None:
    models = equal_models([EXACT, BRUTE_FORCE, PLAIN], VECTORS, CPU)
    x = VECTORS.data()
    ours, theirs, plain = (m.log_prob(x.detach()) for m in models.values())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    constant = math.log(2 * math.pi)  # of a standard normal in two dimensions
    assert not torch.allclose(ours, plain - constant, atol=1e-3)  # it has no log-determinant


def nearly_linear(workload: Workload) -> list[Chain]:
    """Networks whose Jacobian is about I / 2 where inputs are large: a log-determinant to see.

    Nearer to I, a roulette of Poisson(2) terms needs more draws than a test has time for.
    """
    networks = workload.networks()
    for layer in (layer for net in networks for layer in net if hasattr(layer, "weight")):
        torch.nn.init.eye_(layer.weight).data.mul_(0.8)
        torch.nn.init.zeros_(layer.bias)
    return networks


@pytest.mark.parametrize("contender", CONTENDERS.values(), ids=lambda c: c.name)
def test_a_number_is_a_log_density_unless_it_is_marked(contender: Contender) -> None:
    torch.manual_seed(0)
    numpy.random.seed(0)
    networks = nearly_linear(VECTORS)
    x = torch.full((50, 2), 4.0)
    models = [c.build(VECTORS) for c in (EXACT, contender)]
    for model in models:
        model.load(networks)
    exact, given = models
    draws = torch.stack([given.log_prob(x.clone()).detach().mean() for _ in range(150)])
    if contender is PLAIN:
        draws -= math.log(2 * math.pi)  # it leaves out the constant, which changes no gradient
    error = draws.mean() - exact.log_prob(x).mean()
    noise = draws.std() / len(draws) ** 0.5 + 1e-5
    if contender.caveat:
        assert abs(error) > 7 * noise
    else:
        assert abs(error) < 4 * noise


def test_marks_are_in_the_table_the_chart_and_the_data(quick: Quick) -> None:
    page = (quick.folder / "bench.md").read_text()
    charted = [m.contender for m in quick.found.measurements]
    assert {name for name in charted if caveat(name)} >= {"torchflows", PLAIN.name, REDUCED.name}
    for line in footnotes(charted):
        assert line in page
        assert line in quick.content["not_log_densities"]
    assert "\n| torchflows |" not in page
    assert f"\n| torchflows {MARK} |" in page
    assert f"\n| {KEEP.name} |" in page


def test_bars_and_curves_carry_the_marks() -> None:
    axes = Figure().subplots(2)
    names = ("torchflows", KEEP.name)
    bars(axes[0], [Measurement("training step", name, (1.0,), "s") for name in names])
    curves(axes[1], [Measurement("cost against depth", n, (1.0,), "s", 2.0) for n in names])
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    _, legend = axes[1].get_legend_handles_labels()
    assert labels == legend == [f"torchflows {MARK}", KEEP.name] == [marked(n) for n in names]


@pytest.mark.parametrize("contender", [KEEP, RECOMPUTE, REDUCED, UNREDUCED], ids=lambda c: c.name)
def test_steps_train(contender) -> None:
    torch.manual_seed(0)
    workload = replace(VECTORS, batch=64)
    model = contender.build(workload)
    x = 0.1 * workload.data()
    step = contender.training(model, x)
    before = [p.detach().clone() for p in model.parameters() if p.dim() > 1]
    step()
    after = [p for p in model.parameters() if p.dim() > 1]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not x.requires_grad


DENSITY = Size(2, 2, (5,), 32, "density")
SAMPLING = DENSITY._replace(fast="sampling")


@pytest.mark.parametrize("size", [DENSITY, SAMPLING], ids=["density", "sampling"])
@pytest.mark.parametrize("contender", [OURS, NORMFLOWS, MAF, AFFINE], ids=lambda c: c.name)
def test_flows_of_vectors_are_densities(contender: VectorContender, size: Size) -> None:
    torch.manual_seed(1)
    density = contender.build(size)
    contender.training(size, density)()
    density.eval()
    axis = torch.linspace(-25, 25, 501)
    with torch.no_grad():
        total = density.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * 0.1**2
    torch.testing.assert_close(total, torch.tensor(1.0), atol=2e-3, rtol=0)


@pytest.mark.parametrize("contender", [OURS, NSF, MAF, AFFINE, SPLINE], ids=lambda c: c.name)
def test_flows_of_vectors_score_their_samples(contender: VectorContender) -> None:
    torch.manual_seed(0)
    density = contender.build(SAMPLING)
    contender.training(SAMPLING, density)()
    with torch.no_grad():
        z, log_prob = density.rsample_and_log_prob(20)
        torch.testing.assert_close(density.log_prob(z.clone()), log_prob, atol=1e-3, rtol=1e-3)
        assert density.sample(3).shape == (3, 2)


@pytest.mark.parametrize("contender", VECTOR_CONTENDERS, ids=lambda c: c.name)
def test_flows_of_vectors_have_about_as_many_parameters(contender: VectorContender) -> None:
    size = Size(6, 2, (64, 64), 32, "density")
    flow = contender.build(size)
    ours = parameters_of(OURS.build(size))
    assert abs(parameters_of(flow) - ours) < 0.15 * ours
    before = [p.detach().clone() for p in flow.parameters()]
    contender.training(size, flow)()
    assert any(not torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))


@pytest.mark.slow  # two processes that import everything
def test_another_checkout_runs_in_a_process_of_its_own() -> None:
    other = OtherCheckout(Path(__file__).parents[2])
    try:
        assert other.name.startswith("pyro-resflow at ")
        times = [other.clock(DENSITY, run, 2, 16)() for run in ("training", "sample", "log_prob")]
        assert all(time > 0 for time in times)
    finally:
        other.close()
    assert other.process.returncode == 0


def test_a_checkout_is_compared_with_this_one_in_a_process_of_its_own() -> None:
    here, other = (SimpleNamespace(name=f"pyro-resflow at {commit}") for commit in ("b", "a"))
    times = {OURS.name: 4.0, here.name: 2.0, other.name: 6.0}
    measured = [Measurement("step", name, (time,), "s") for name, time in times.items()]
    (row,) = faster("step", measured, [here, other], AtLeast(2.5))
    assert (row.figure, row.reached, row.met) == ("step: times as fast as at a", 3.0, True)
    assert faster("step", measured, [], None) == []


def test_another_checkout_has_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="against: expected the root of a checkout"):
        OtherCheckout(tmp_path)


def test_a_different_function_is_found_out() -> None:
    ours, theirs = IMAGES.networks(), IMAGES.networks()
    with pytest.raises(ValueError, match="library: the network of block 0 differs"):
        check_same_function("library", theirs, ours, IMAGES.data())


def test_plain_network_has_only_fused_activations() -> None:
    net = IMAGES.network()
    kinds = [type(m).__name__ for m in plain_network(net)]
    assert kinds == ["Gain", "SiLU", "Conv2d", "SiLU", "Conv2d", "SiLU", "Conv2d"]


def test_turns_rotate_and_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def clock(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    clocks = {name: lambda name=name: clock(name) for name in "ab"}
    measured = sampled("group", clocks, 2, "s", warm_up=1)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert [m.values for m in measured] == [(4.0, 5.0), (3.0, 6.0)]


def test_medians_ratios_and_targets() -> None:
    a = Measurement("g", "a", (1.0, 2.0, 3.0, 4.0, 50.0), "s")
    b = Measurement("g", "b", (6.0,), "s")
    assert (a.median, a.quartiles, b.quartiles) == (3.0, (2.0, 4.0), (6.0, 6.0))
    assert ratio([a, b], "b", "a") == 2.0
    assert Row("f", 2.0, AtLeast(1.8)).met
    assert Row("f", 2.0, AtMost(1.8)).met is False
    assert Row("f", 2.0).met is None


def test_slope_and_exponent_of_curves() -> None:
    line = [Measurement("g", "c", (5.0 + 3.0 * at,), "B", at) for at in (2, 4, 8)]
    assert slope(line) == pytest.approx(3.0)
    square = [Measurement("g", "c", (7.0 * at**2,), "s", at) for at in (2, 4, 8)]
    assert last_exponent(square) == pytest.approx(2.0)


@pytest.mark.parametrize("axis", FULL.scales)
def test_workloads_along_an_axis_are_built(axis: str) -> None:
    workload = along(IMAGES, axis, 6)
    x = workload.data()
    assert len(workload.networks()) == workload.blocks
    assert workload.network()(x).shape == x.shape
    assert workload != IMAGES


def test_blocks_are_inverted_at_the_lipschitz_constant() -> None:
    networks, x = IMAGES.networks(), IMAGES.data()
    for place, net in zip(places_along(networks, x), networks, strict=True):
        sigma = largest_singular_value(net, place.x.float(), steps=200)
        assert place.gain * sigma == pytest.approx(LIPSCHITZ, rel=1e-2)
        with torch.no_grad():
            image = place.x.float() + scaled(net, place.gain)(place.x.float())
        torch.testing.assert_close(image, place.y.float())
        assert place.error(place.x) == 0
        assert place.error(place.x + 10 * place.y.abs().max()) >= 10


def test_gradients_are_those_of_the_bilinear_form() -> None:
    net = VECTORS.network().double()
    x = VECTORS.data().double()
    probe, adjoint = torch.randn(2, 1, *x.shape, dtype=torch.float64)
    (found,) = gradients(net, x, probe, [adjoint])
    _, tangent = net.dual(x, probe)
    (tangent * adjoint).sum(-1).mean().backward()
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]))


def test_memory_is_reported_by_contender_and_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {KEEP.name: 50.0, RECOMPUTE.name: 3.0, REDUCED.name: 20.0, UNREDUCED.name: 60.0}

    def measured(name: str, workload: Workload, device: torch.device, environment=LIVE) -> float:
        fragments = 1.0 if environment == LIVE else 2.0
        return fragments * (sizes[name] * workload.blocks + 1) * workload.input_bytes

    group = importlib.import_module("benchmarks.speed.groups.memory")
    monkeypatch.setattr(group, "peak_memory", measured)
    found = GROUPS["memory"](QUICK)
    reached = {row.figure: row.reached for row in found.rows}
    added = "memory that one more block adds, in sizes of its input"
    for contender in (KEEP, RECOMPUTE, REDUCED):
        assert reached[f"{added}: {contender.name}"] == pytest.approx(sizes[contender.name])
    share = "recompute, share of normflows with reduce_memory"
    assert reached[f"peak memory, 1x4x4, 4 wide: {share}"] == pytest.approx(7 / 41)
    assert [row.must for row in found.rows if row.figure.endswith(share)] == [AtMost(0.35), None]
    assert {m.group.partition(",")[0] for m in found.measurements} == {
        "peak memory",
        "peak memory with malloc's fragments",
        "peak memory against depth",
    }


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_what_a_run_takes() -> None:
    size = 64 * 2**20

    def run() -> None:
        torch.ones(size, dtype=torch.uint8)

    assert 0.98 * size < peak_above_now(run, CPU) < 1.1 * size  # the kernel counts by batches


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_of_training_grows_with_the_batch() -> None:
    workload = Workload("images", (1, 16, 16), (32, 32), blocks=2, batch=64)
    small = peak_memory(RECOMPUTE.name, workload, CPU)
    large = peak_memory(RECOMPUTE.name, replace(workload, batch=256), CPU)
    activation = 4 * 256 * 32 * 256  # one layer's output at the larger batch
    assert large - small > activation
    assert 0 < small < large < 50 * activation
