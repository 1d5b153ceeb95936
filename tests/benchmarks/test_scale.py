"""The table of published sizes and its command line."""

from __future__ import annotations

import pytest

from benchmarks import scale, scale_check
from benchmarks.published_sizes import FlowSize
from benchmarks.step_cost import Cost, Peak
from pyro_resflow.flows import ConvBlock

TINY = FlowSize(
    (1, 8, 8),
    (1,),
    {"network": ConvBlock(8), "end_blocks": 0},
    batch=4,
    training_images=1000,
    authors_parameters=1e6,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.01234, "0.0123"), (5.0, "5.00"), (93.86, "93.9"), (3122.9, "3,120"), (9.996, "10.00")],
)
def test_figures_have_three_digits(number: float, text: str) -> None:
    assert scale.figure(number) == text


def test_gpu_hours() -> None:
    assert scale.gpu_hours(3600e12, utilisation=0.5, peak_tflops=2.0) == pytest.approx(1.0)


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_prints_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(scale, "PUBLISHED", {"tiny": TINY})
    assert scale.command_line(["--sizes", "[tiny]", "--utilisation", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "50% of 156 TFLOP/s" in printed
    rows = rows_of(printed)
    assert len(rows) == 6
    operations = dict(zip(rows[0], rows[2], strict=True))
    memory = dict(zip(rows[3], rows[5], strict=True))
    assert operations["flow"] == memory["flow"] == "tiny"
    assert operations["authors' code*"] == "1.0 M"
    per_image = float(operations["GFLOP an image, recompute"]) * 1e9
    hours = per_image * 1000 / (0.5 * 156e12) / 3600
    assert float(operations["1000 epochs"]) == pytest.approx(1000 * hours, rel=0.02)
    batches = [int(memory[f"keep: batch in {gb} GB"]) for gb in (24, 40, 80)]
    assert 0 < batches[0] < batches[1] < batches[2]
    assert batches[2] * float(memory["keep: an image"].split()[0]) * 1e6 < 80e9


@pytest.mark.parametrize(("factor", "status"), [(1.05, 0), (1.2, 1), (0.8, 1)])
def test_check_fails_where_a_prediction_is_off(
    factor: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cost = Cost(10, 1000, 64, peak=Peak(500.0, 95.0), flops=1e9, norm_flops=1e8)

    def measured(name: str, memory: str) -> dict[str, float]:
        return {"peak": factor * cost.peak.at(TINY.batch), "flops": cost.flops}

    monkeypatch.setattr(scale_check, "SMALL", {"tiny": TINY})
    monkeypatch.setattr(scale_check, "MEMORY_MODES", ("keep",))
    monkeypatch.setattr(scale_check, "predict", lambda size, memory: cost)
    monkeypatch.setattr(scale_check, "measure_in_fresh_process", measured)
    assert scale.command_line(["--check"]) == status
    rows = rows_of(capsys.readouterr().out)
    assert [row[-1] for row in rows[2:]] == [f"{factor:.3f}", "1.000"]
