#!/usr/bin/env bash
# zuko 1.6.0 with torch 2.14.1
#
# Behaviour: the inverse of a MonotonicTransform searches between -10 and 10, and returns 10 for a
# larger root, without an error or a warning. This affects the flows built from it, such as an
# untrained GF.
# One would have guessed: an error, or a bracket that grows until it contains the root.
# Output seen:
#   inverse of x / 4 at 3: 10.000
#   GF(3): 79 % of 2,000 standard normal draws are not recovered to a relative .01
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'zuko==1.6.0' numpy
run <<'PYTHON'
import sys

import torch
import zuko

x = zuko.transforms.MonotonicTransform(lambda x: x / 4).inv(torch.tensor(3.0))
print(f"inverse of x / 4 at 3: {x:.3f}")
torch.manual_seed(0)
flow, z = zuko.flows.GF(3), torch.randn(2000, 3)
with torch.no_grad():
    transform = flow.transform()
    back = transform(transform.inv(z))
lost = ((back - z).abs() > 0.01 * (1 + z.abs())).any(-1).float().mean()
print(f"GF(3): {100 * lost:.0f} % of 2,000 standard normal draws are not recovered to a relative .01")
sys.exit(not (abs(x - 10) < 1e-3 and 0.7 < lost < 0.9))
PYTHON
