"""Scores of small tables, and noise against over-fitting."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("zuko")
pytest.importorskip("sklearn")

from examples import small_tables
from examples.small_tables import Recipe, main, mean, normal, run
from examples.tabular import Split, Training, fit, load
from pyro_resflow import residual_flow

TRAINING = Training(steps=2, check_every=1)


def test_the_normal_has_the_moments_of_the_training_rows():
    train = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    split = Split(train, train, torch.zeros(1, 2))
    covariance = torch.diag(torch.tensor([2 / 3, 8 / 3]))
    expected = -torch.tensor(2 * torch.pi).log() - covariance.det().log() / 2
    assert normal(split) == pytest.approx(float(expected), rel=1e-5)


def test_a_mean_has_its_standard_error():
    assert mean([1.0, 2.0, 3.0]) == "2.00 ± 0.58"


def test_noise_changes_a_run_and_its_absence_does_not():
    split = load("wine", 0)
    tiny = Recipe(lambda n: residual_flow(n, 1, [2], fast="density"), 0.0)
    quiet = run(tiny, "wine", 0, TRAINING, "quiet")
    assert run(tiny, "wine", 0, TRAINING, "again") == quiet
    loud = run(Recipe(tiny.flow, 0.5), "wine", 0, TRAINING, "loud")
    assert loud != quiet
    torch.manual_seed(0)
    flow = tiny.flow(split.train.shape[1])
    fit(flow, split, TRAINING, 0, "last")
    assert small_tables.score(flow, split.test) == pytest.approx(quiet.last)


def test_the_program_writes_a_table(tmp_path, capsys, monkeypatch):
    tiny = Recipe(lambda n: residual_flow(n, 1, [2], fast="density"), 0.1)
    monkeypatch.setattr(small_tables, "RECIPES", {"tiny": tiny})
    main(["wine"], 2, TRAINING, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n") == 4
    assert table in capsys.readouterr().out
    assert "| wine | tiny | " in table
