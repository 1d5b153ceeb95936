from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch

pytest.importorskip("arviz")
pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("zuko")

import matplotlib

from examples.neutra import main, sample


def test_gradients_after_the_warm_up_are_counted() -> None:
    pyro.set_rng_seed(0)
    calls = []

    def model() -> None:
        calls.append(None)
        pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))

    chain = sample(model, draws=5, warmup=5)
    assert chain.samples["x"].shape == (5,)
    assert 5 <= chain.gradients < len(calls)


def test_short_chains_print_the_table_and_write_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matplotlib.use("agg")
    torch.manual_seed(0)
    main(steps=2, particles=4, width=4, draws=4, warmup=4, folder=tmp_path / "new")
    printed = capsys.readouterr().out
    assert "| NUTS | 4 |" in printed
    assert "| NeuTra | 4 |" in printed
    assert (tmp_path / "new" / "neutra.png").stat().st_size > 1000
