#!/usr/bin/env bash
# arviz 0.23.4, and arviz 1.3.0 with arviz-stats 1.3.3 and arviz-base 1.3.1; needs Python 3.12
#
# Behaviour: psislw takes log-weights in 0.23. In 1.3 (array API) it takes log-likelihoods and negates
# them, so the same call diagnoses the opposite tail. In 1.3, 25 to 29 draws give a k of nan, and equal
# weights raise an error. The tail effective sample size is that of the quantiles .05 and .95 in 0.23. In
# 1.3 it is that of .11 and .89, which follow the probability of displayed intervals; with a setting of .5
# it is that of the median. The standard error of loo divides by n in 0.23 and by n - 1 in 1.3, and its k
# differs because the tails have different lengths. 1.3 installs no backend for to_netcdf.
# One would have guessed: the same value of a published diagnostic in both versions; diagnostics that do
# not depend on a setting of plots; a documented reason for nan and for errors.
# Output seen:
#   k of x and of -x for 1000 normal x: 0.38, 0.59 under 0.23.4
#   k of x and of -x for 1000 normal x: 0.61, 0.37 under 1.3.0
#   k of 24, 25, 29 and 30 draws: ValueError, nan, nan, 0.02; of equal ones: ValueError
#   tail effective sample size: 416 under 0.23.4, 372 under 1.3.0, 417 there with ci_prob .5
#   effective sample size of the median: 417
#   loo: -4.200 +- 0.245, largest k 0.44 under 0.23.4
#   loo: -4.199 +- 0.262, largest k 0.43 under 1.3.0
#   to_netcdf under 1.3.0: ValueError
source "$(dirname "$0")/venv.sh"
PYTHON=${PYTHON:-python3.12}
cat > "$folder/program.py" <<'PYTHON'
import sys

import arviz as az
import numpy as np

first = az.__version__.startswith("0.")
normal = np.random.default_rng(0).normal(size=1000)


def container(**groups):
    return az.from_dict(**groups) if first else az.from_dict(groups)


def k(weights):
    if first:
        return float(az.psislw(weights)[1])
    from arviz_stats.base import array_stats

    return float(array_stats.psislw(weights)[1])


def outcome(weights):
    try:
        return f"{k(weights):.2f}"
    except ValueError as error:
        return type(error).__name__


signs = f"{k(normal):.2f}, {k(-normal):.2f}"
print(f"k of x and of -x for 1000 normal x: {signs} under {az.__version__}")
few = [outcome(-normal[:n]) for n in (24, 25, 29, 30)] + [outcome(np.zeros(1000))]
if not first:
    print("k of {}; of equal ones: {}".format("24, 25, 29 and 30 draws: " + ", ".join(few[:4]), few[4]))

draws = np.random.default_rng(0).normal(size=(4, 100))
posterior = container(posterior={"a": draws})


def tail():
    return round(float(az.ess(posterior, method="tail")["a"]))


tails = [tail()]
if first:
    print(f"tail effective sample size: {tails[0]} under {az.__version__}")
else:
    with az.rc_context({"stats.ci_prob": 0.5}):
        tails.append(tail())
    tails.append(round(float(az.ess(posterior, method="median")["a"])))
    print(
        "tail effective sample size: {} under {}, {} there with ci_prob .5\n"
        "effective sample size of the median: {}".format(tails[0], az.__version__, *tails[1:])
    )

rng = np.random.default_rng(0)
values = {"y": rng.normal(size=(4, 101, 8))}
scored = container(posterior={"a": rng.normal(size=(4, 101))}, log_likelihood=values)
loo = az.loo(scored, pointwise=True)
elpd = loo.elpd_loo if first else loo.elpd
each = np.asarray(loo.loo_i if first else loo.elpd_i)
largest = float(loo.pareto_k.max())
print(f"loo: {elpd:.3f} +- {loo.se:.3f}, largest k {largest:.2f} under {az.__version__}")
wrong = not np.isclose(loo.se, each.std(ddof=0 if first else 1) * 8**0.5)

if not first:
    try:
        posterior.to_netcdf(sys.argv[1])
        written = "a file"
    except (ValueError, ImportError) as error:
        written = type(error).__name__
    print(f"to_netcdf under {az.__version__}: {written}")
    wrong |= few != ["ValueError", "nan", "nan", "0.02", "ValueError"]
    wrong |= tails[1] != tails[2] or written != "ValueError"
wrong |= signs != ("0.38, 0.59" if first else "0.61, 0.37")
wrong |= tails[0] != (416 if first else 372)
sys.exit(bool(wrong))
PYTHON
install 'arviz==0.23.4'
run "$folder/file.nc" < "$folder/program.py"
rm -rf "$folder/venv"
install 'arviz==1.3.0' 'arviz-stats==1.3.3' 'arviz-base==1.3.1'
run "$folder/file.nc" < "$folder/program.py"
