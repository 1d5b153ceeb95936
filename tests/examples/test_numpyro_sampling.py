from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")
pytest.importorskip("numpyro")

import matplotlib

from examples.numpyro_sampling import Run, main


@pytest.mark.slow
def test_few_steps_sample_in_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("agg")
    main(steps=3, blocks=1, width=8, warmup=5, num_samples=10, folder=tmp_path / "new")
    printed = capsys.readouterr().out
    assert "largest difference of the log densities" in printed
    assert "NumPyro, again" in printed
    assert "times as fast as Pyro" in printed
    assert (tmp_path / "new" / "numpyro_sampling.png").stat().st_size > 1000


def test_rows_hold_the_moments() -> None:
    samples = np.array([[1.0, -2.0], [3.0, -2.0]] * 50)
    row = Run("sampler", samples, seconds=2.0).row()
    assert "2.00 (1.00)" in row
    assert "-2.00 (0.00)" in row
    assert row.startswith("sampler")
