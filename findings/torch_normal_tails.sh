#!/usr/bin/env bash
# torch 2.14.1, scipy for comparison
#
# Behaviour: torch.special.ndtr and Normal.cdf add two numbers near 1/2 in the lower tail. In float32 they
# are 4 % too large at -5 and 0 from -5.5 on; in float64 2 % too small at -8. The inverse of
# CumulativeDistributionTransform therefore returns -inf for what it maps from -5.5, while its
# log-determinant is finite. torch.special.log_ndtr is right.
# One would have guessed: both tails have a small relative error, as in scipy, in float32 too; a
# transform of distributions inverts what it returned.
# Output seen:
#   float32 ndtr at -4, -5, -5.5, -8: torch 3.1680e-05 2.9802e-07 0.0000e+00 0.0000e+00
#   float32 ndtr at -4, -5, -5.5, -8: scipy 3.1671e-05 2.8665e-07 1.8990e-08 6.2210e-16
#   float32 exp of log_ndtr of torch:       3.1671e-05 2.8665e-07 1.8990e-08 6.2210e-16
#   float64 ndtr at -8: torch 6.1062e-16, scipy 6.2210e-16
#   CumulativeDistributionTransform of Normal, at -5.5: there and back -inf, log-determinant -16.04
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' numpy scipy
run <<'PYTHON'
import sys

import torch
from scipy.special import ndtr
from torch.distributions import Normal
from torch.distributions.transforms import CumulativeDistributionTransform


def shown(values):
    return " ".join(f"{float(value):.4e}" for value in values)


x = torch.tensor([-4.0, -5.0, -5.5, -8.0])
torchs, scipys = shown(torch.special.ndtr(x)), shown(ndtr(x.numpy()))
logs = shown(torch.special.log_ndtr(x).exp())
print(f"float32 ndtr at -4, -5, -5.5, -8: torch {torchs}")
print(f"float32 ndtr at -4, -5, -5.5, -8: scipy {scipys}")
print(f"float32 exp of log_ndtr of torch:       {logs}")
last = torch.tensor([-8.0], dtype=torch.float64)
double = shown(torch.special.ndtr(last)), shown(ndtr(last.numpy()))
print(f"float64 ndtr at -8: torch {double[0]}, scipy {double[1]}")
normal = Normal(0.0, 1.0)
transform = CumulativeDistributionTransform(normal)
y = transform(x[2])
back, ladj = transform.inv(y).item(), transform.log_abs_det_jacobian(x[2], y).item()
print(f"CumulativeDistributionTransform of Normal, at -5.5: there and back {back}, log-determinant {ladj:.2f}")

exact = "3.1671e-05 2.8665e-07 1.8990e-08 6.2210e-16"
sys.exit(
    (torchs, scipys, logs) != ("3.1680e-05 2.9802e-07 0.0000e+00 0.0000e+00", exact, exact)
    or double != ("6.1062e-16", "6.2210e-16")
    or back != float("-inf")
    or f"{ladj:.2f}" != "-16.04"
)
PYTHON
