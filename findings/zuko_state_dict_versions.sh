#!/usr/bin/env bash
# zuko 1.4.0 and 1.6.0 with torch 2.14.1
#
# Behaviour: a state dict of a MAF's transform that was saved under 1.4.0 loads into 1.6.0 with all
# keys matched, but gives a different map: the smallest slope of its affine maps was 1e-4 and is 1e-3,
# and the log-scale depends on it at every point, not only near the limit.
# One would have guessed: weights whose keys all match give the same density.
# Output seen:
#   <All keys matched successfully>
#   largest difference of log-determinants: 0.0838
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'zuko==1.4.0' numpy
cat > "$folder/both.py" <<'PYTHON'
import sys

import torch
import zuko

torch.manual_seed(0)
flow, path = zuko.flows.MAF(3), sys.argv[1]
x = torch.rand(200, 3) * 2 - 1
if zuko.__version__ == "1.4.0":
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(2)
    ladj = flow.transform().call_and_ladj(x)[1].detach()
    torch.save((flow.transform.state_dict(), x, ladj), path)
else:
    state, x, ladj = torch.load(path)
    print(flow.transform.load_state_dict(state))
    difference = (flow.transform().call_and_ladj(x)[1].detach() - ladj).abs().max()
    print(f"largest difference of log-determinants: {difference:.4f}")
    sys.exit(not difference > 0.01)
PYTHON
run "$folder/state.pt" < "$folder/both.py"
install 'zuko==1.6.0'
run "$folder/state.pt" < "$folder/both.py"
