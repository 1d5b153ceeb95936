"""The benchmark for a GPU runs on a CPU, where no recording is made by CUDA."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("normflows")

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.agreement import DisagreementError, check_recordings
from benchmarks.gpu.contenders import UNREAD, Graphed, tail_of
from benchmarks.gpu.graphed import MOST, WARM_UP, GraphedStep, SharedTail, Step
from benchmarks.gpu.plan import QUICK
from benchmarks.gpu.sections import Budget
from pyro_resflow.logdet import Exact, Krylov
from pyro_resflow.nn import LipschitzMLP

CPU = torch.device("cpu")


def record_eagerly(step: Step) -> Step:
    """As a recording on CUDA: some steps before, none while it is made."""
    for _ in range(WARM_UP):
        step()
    return step


def test_a_quick_run_prints_every_section(capsys: pytest.CaptureFixture) -> None:
    main(["--device", "cpu", "--quick", "--sections", "training", "vectors", "published"])
    printed = capsys.readouterr().out
    for expected in ("1x4x4, 4 wide", "3-d: 2 blocks", "nothing read", "normflows", "† plain"):
        assert expected in printed
    for precision in ("float32", "TF32", "bfloat16"):
        assert f"| tiny | 32 | {precision} |" in printed
    assert "left out" not in printed


def test_rows_without_time_are_left_out(capsys: pytest.CaptureFixture) -> None:
    main(["--device", "cpu", "--quick", "--seconds", "0"])
    printed = capsys.readouterr().out
    rows = len(QUICK.images) + len(QUICK.vectors) + 3 * len(QUICK.batches) + 1
    assert printed.count("left out, the 0 seconds are over") == rows


def test_a_budget_ends() -> None:
    times = iter([10.0, 12.0, 15.0])
    budget = Budget(4.0, clock=lambda: next(times))
    assert budget.left == 2
    assert not budget.allows("row")


def test_recordings_are_made_once_for_each_number_of_products() -> None:
    calls: list[int] = []
    tail = SharedTail(1 / 3)
    step = GraphedStep(lambda: calls.append(tail.number), tail, record_eagerly)
    for number in (0, 2, 0, MOST + 1, 2):
        step.take(number)
    assert calls == [0] * (WARM_UP + 1) + [2] * (WARM_UP + 1) + [0, MOST + 1, 2]
    assert sorted(step.recordings) == [0, 2]
    assert step.eager == 1


@pytest.mark.parametrize("workload", [*QUICK.images, *QUICK.vectors], ids=lambda each: each.name)
def test_recorded_steps_are_compared_with_eager_ones(workload) -> None:
    assert check_recordings(workload, CPU, record_eagerly) == 0
    with pytest.raises(DisagreementError, match=workload.name):
        check_recordings(workload, CPU, lambda step: step)  # takes fewer steps


def test_the_blocks_of_a_model_share_their_number_of_products() -> None:
    model = Graphed("graphed").build(QUICK.images[0])
    tail_of(model).number = 5
    assert [block.logdet.tail.draw(None) for block in model.blocks] == [5, 5]
    assert tail_of(UNREAD.build(QUICK.images[0])) is not tail_of(model)


def test_a_shared_number_leaves_an_estimate_unbiased() -> None:
    net, tail = LipschitzMLP(4, [8]), SharedTail(0.5)
    x = torch.randn(1, 4)
    exact = Exact()(net, x)[1]
    estimator, draws = Krylov(1, tail=tail), []
    with torch.no_grad():
        for _ in range(300):
            tail.number = tail.next()
            draws.append(estimator(net, x.expand(20, 4))[1].mean())
    found = torch.stack(draws)
    assert (found.mean() - exact).abs() < 4 * found.std() / len(found) ** 0.5
