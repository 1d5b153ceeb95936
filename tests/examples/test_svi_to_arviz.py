from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")
pytest.importorskip("arviz")

import arviz as az
import matplotlib

from examples.svi_to_arviz import main


def test_few_steps_write_figure_and_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matplotlib.use("agg")
    folder = tmp_path / "new"
    main(steps=3, blocks=1, width=8, num_samples=30, folder=folder)
    printed = capsys.readouterr().out
    assert "mean field: ELBO" in printed
    assert "residual flow: ELBO" in printed
    assert "theta[H]" in printed
    assert (folder / "svi_to_arviz.png").stat().st_size > 1000
    data = az.from_netcdf(str(folder / "residual_flow.nc"))
    assert data.posterior["theta"].dims == ("chain", "draw", "school")
    assert "pareto_k" in data.sample_stats.attrs
