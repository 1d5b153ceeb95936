"""Eight schools, from Pyro's SVI to ArviZ: how good is the guide, how well does the model predict?

The model has the effects of coaching in eight schools, with a common mean and spread (Rubin,
1981), in the centred form, whose posterior has a funnel. A mean-field normal guide and a residual
flow are fitted, and both are converted to ArviZ.

    python -m examples.svi_to_arviz
    python -m examples.svi_to_arviz --steps 500 --num_samples 500
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoNormal, AutoNormalizingFlow
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

from examples.parsing import command_line
from examples.plotting import save_figure
from examples.posteriors import EFFECTS, ERRORS
from examples.training import decaying_adam, train
from pyro_resflow import residual_flow
from pyro_resflow.interop.arviz import from_svi, loo

INTERVAL = (3, 50, 97)
"""Percentiles in the figure: the ends of the 94% interval, and the median."""

SCHOOLS = list("ABCDEFGH")


def model(effects: Tensor, errors: Tensor) -> None:
    """Model the effects of the schools around a common mean, observed with known errors."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effects)):
        theta = pyro.sample("theta", dist.Normal(mean, spread))
        pyro.sample("effect", dist.Normal(theta, errors), obs=effects)


def flow_guide(blocks: int, width: int) -> AutoContinuous:
    """Build a guide whose samples take one pass through a residual flow."""
    flow = partial(residual_flow, blocks=blocks, hidden_dims=[width, width])
    return AutoNormalizingFlow(model, flow)


def fit(guide: AutoContinuous, name: str, steps: int, learning_rate: float) -> None:
    """Maximise the ELBO."""
    train(
        model,
        guide,
        decaying_adam(learning_rate, steps),
        ((EFFECTS, ERRORS) for _ in range(steps)),
        steps=steps,
        elbo=Trace_ELBO(num_particles=8, max_plate_nesting=1, vectorize_particles=True),
        description=name,
    )


def estimate(result: Any) -> float:
    """Return the expected log density: ``elpd_loo`` in ArviZ 0.x, ``elpd`` in ArviZ 1."""
    return float(result.elpd if hasattr(result, "elpd_i") else result.elpd_loo)


def report(data: Any) -> str:
    """Summarise the guide by its importance weights, and the model by leave-one-out."""
    stats = data["sample_stats"]
    weights = stats["log_weight"]
    error = float(weights.std()) / np.sqrt(weights.size)
    result = loo(data)
    return (
        f"ELBO {float(weights.mean()):.2f} +- {error:.2f}, Pareto k "
        f"{stats.attrs['pareto_k']:.2f}, effective draws {stats.attrs['effective_draws']:.0f}, "
        f"elpd by leave-one-out {estimate(result):.2f} +- {result.se:.2f}, largest Pareto k "
        f"there {float(result.pareto_k.max()):.2f}"
    )


def intervals(posterior: Any) -> tuple[list[str], np.ndarray]:
    """Return the variables and their percentiles, shape ``(variables, 3)``."""
    columns = {name: posterior[name].values.ravel() for name in ("mean", "spread")}
    for school in SCHOOLS:
        columns[f"theta[{school}]"] = posterior["theta"].sel(school=school).values.ravel()
    return list(columns), np.percentile(np.stack([*columns.values()]), INTERVAL, axis=1).T


def draw(fitted: dict[str, Any], path: Path) -> None:
    """Draw the guides' joint of one effect and the log spread, the intervals, and predictions."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for shift, (name, data) in zip((-0.12, 0.12), fitted.items(), strict=True):
        posterior = data["posterior"]
        axes[0].plot(
            posterior["theta"].sel(school="A").values.ravel(),
            np.log(posterior["spread"].values.ravel()),
            ".",
            markersize=2,
            label=name,
        )
        names, percentiles = intervals(posterior)
        low, middle, high = percentiles.T
        places = -np.arange(len(names)) - shift
        axes[1].errorbar(middle, places, xerr=(middle - low, high - middle), fmt="o", markersize=4)
        axes[1].set_yticks(-np.arange(len(names)), names)
    axes[0].set(xlabel="theta, school A", ylabel="log spread", title="draws of the guides")
    axes[0].legend(markerscale=5)
    axes[1].set_title("94% intervals")  # in the colours of the first axis
    predicted = next(reversed(fitted.values()))["posterior_predictive"]["effect"].values[0]
    axes[2].boxplot(predicted, showfliers=False)
    axes[2].plot(range(1, 9), EFFECTS, "o", label="observed")
    axes[2].set_xticks(range(1, 9), SCHOOLS)  # boxplot's own argument has two names
    axes[2].set(xlabel="school", title="posterior predictive of the flow")
    axes[2].legend()
    save_figure(figure, path, dpi=100)


def main(
    steps: int = 1500,
    learning_rate: float = 3e-2,
    blocks: int = 4,
    width: int = 32,
    num_samples: int = 1000,
    seed: int = 0,
    folder: Path = Path("runs/svi_to_arviz"),
) -> None:
    """Fit both guides, convert them to ArviZ, print its summary and draw.

    Args:
        steps: Training steps of each guide.
        learning_rate: Initial learning rate of Adam; it falls to a twentieth.
        blocks: Residual blocks of the flow.
        width: Size of both hidden layers of a block.
        num_samples: Draws of each guide.
        seed: Random seed.
        folder: Folder for the figure and the data.
    """
    torch.set_num_threads(1)  # the networks are too small to share
    guides: dict[str, Callable[[], AutoContinuous]] = {
        "mean field": partial(AutoNormal, model, init_loc_fn=init_to_median),
        "residual flow": partial(flow_guide, blocks, width),
    }
    folder.mkdir(parents=True, exist_ok=True)
    fitted = {}
    for name, make in guides.items():
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = make()
        fit(guide, name, steps, learning_rate)
        fitted[name] = from_svi(
            model,
            guide,
            EFFECTS,
            ERRORS,
            num_samples=num_samples,
            coords={"school": SCHOOLS},
        )
        fitted[name].to_netcdf(str(folder / f"{name.replace(' ', '_')}.nc"))
    for name, data in fitted.items():
        print(f"{name}: {report(data)}")
    print(az.summary(fitted["residual flow"], kind="stats"))
    draw(fitted, folder / "svi_to_arviz.png")


if __name__ == "__main__":
    command_line(main)
