from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("zuko")

import matplotlib

from examples.tabular import (
    DATA,
    MODELS,
    Result,
    Training,
    density,
    exact_log_determinants,
    load,
    main,
    score,
)


@pytest.mark.parametrize("name", DATA)
def test_splits_are_disjoint_standardised_and_repeatable(name: str) -> None:
    split = load(name, seed=3)
    sizes = [len(part) for part in (split.train, split.validation, split.test)]
    assert sizes[1] == sizes[2] == sum(sizes) // 10
    torch.testing.assert_close(
        split.train.mean(0), torch.zeros(split.train.shape[1]), atol=0.1, rtol=0
    )
    assert (abs(split.train.std(0) - 1) < 0.1).all()
    rows = torch.cat([split.train, split.validation, split.test])
    assert len(rows.unique(dim=0)) == len(rows)
    assert torch.equal(load(name, seed=3).test, split.test)
    assert not torch.equal(load(name, seed=4).test, split.test)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_exact(name: str) -> None:
    """Twice the same, up to rounding."""
    flow = MODELS[name](3)
    rows = torch.randn(20, 3)
    density(flow, 3).log_prob(rows)
    assert score(flow, rows) == pytest.approx(score(flow, rows), abs=1e-4)
    with exact_log_determinants(flow):
        inside = density(flow, 3).log_prob(rows).mean()
    assert score(flow, rows) == pytest.approx(inside.item(), abs=1e-4)


def test_results_tell_mean_and_standard_error() -> None:
    result = Result([1.0, 3.0], [2.0, 4.0], 10)
    assert result.error == pytest.approx(1.0)
    assert result.cell() == "2.00 ± 1.00 (3 s)"
    assert Result([1.0], [2.0], 10).cell() == "1.00 (2 s)"


@pytest.fixture
def few(tmp_path: Path) -> dict[str, Any]:
    """Arguments of a short run into a new folder."""
    matplotlib.use("agg")
    training = Training(steps=3, check_every=2)
    return {"data": ("wine",), "seeds": 2, "training": training, "folder": tmp_path / "new"}


def test_few_steps_write_the_table(
    few: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    main(models=("residual flow", "MAF"), **few)
    assert "| residual flow |" in capsys.readouterr().out
    assert (few["folder"] / "table.md").read_text().startswith("| model | wine |")
    assert (few["folder"] / "tabular.png").stat().st_size > 1000


def test_a_run_goes_on_with_results_of_the_same_settings(
    few: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []

    def run(data: str, model: str, seeds: int, training: Training) -> Result:
        ran.append((model, training.steps))
        return Result([1.0, float(training.steps)], [0.5, 0.25], 7)

    monkeypatch.setattr("examples.tabular.run", run)
    monkeypatch.setattr("examples.tabular.commit", lambda: "first")
    main(models=("MAF",), **few)
    first = (few["folder"] / "table.md").read_text()
    main(models=("MAF", "NSF"), **few)
    assert ran == [("MAF", 3), ("NSF", 3)]
    assert (few["folder"] / "table.md").read_text().startswith(first)
    main(models=("MAF",), **{**few, "training": Training(steps=4)})
    assert "2.50 ± 1.50" in (few["folder"] / "table.md").read_text()
    main(models=("MAF",), **few)
    assert ran[2:] == [("MAF", 4)]
    monkeypatch.setattr("examples.tabular.commit", lambda: "second")
    main(models=("MAF",), **few)
    assert ran[3:] == [("MAF", 3)]


def test_a_damaged_result_is_named(few: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.tabular.run", lambda *_: Result([1.0, 2.0], [0.5, 0.25], 7))
    main(models=("MAF",), **few)
    (kept,) = few["folder"].glob("*.json")
    for content in ("", "[]", "{}", '{"result": {"nats": []}}', '{"result": 3}'):
        kept.write_text(content)
        with pytest.raises(SystemExit, match=r"error: .*json does not hold a result .*; delete"):
            main(models=("MAF",), **few)
