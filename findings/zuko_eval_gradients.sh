#!/usr/bin/env bash
# zuko 1.6.0 with torch 2.14.1
#
# Behaviour: in eval() the inverse of a NAF gives no gradient to half of the flow's parameters, and
# log_prob of a CNF raises an error. In training mode both have all gradients. zuko 1.4.0 has all
# gradients in both modes.
# One would have guessed: eval() changes dropout and batch norms, of which these flows have none.
# Output seen:
#   NAF train: gradients for 12 of 12 parameters
#   NAF eval: gradients for 6 of 12 parameters
#   CNF train: gradients for 6 of 6 parameters
#   CNF eval: RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'zuko==1.6.0' numpy
run <<'PYTHON'
import sys

import torch
import zuko


def outcome(flow, loss):
    flow.zero_grad(set_to_none=True)
    try:
        loss().backward()
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    given = [parameter.grad is not None for parameter in flow.parameters()]
    return f"gradients for {sum(given)} of {len(given)} parameters"


torch.manual_seed(0)
naf, cnf, z = zuko.flows.NAF(2, transforms=1), zuko.flows.CNF(2), torch.randn(5, 2)
losses = {
    "NAF": (naf, lambda: naf.transform().inv(z).square().sum()),
    "CNF": (cnf, lambda: cnf().log_prob(z).sum()),
}
seen = []
for name, (flow, loss) in losses.items():
    for mode in ("train", "eval"):
        flow.train(mode == "train")
        seen.append(f"{name} {mode}: {outcome(flow, loss)}")
print(*seen, sep="\n")
expected = [
    "NAF train: gradients for 12 of 12 parameters",
    "NAF eval: gradients for 6 of 12 parameters",
    "CNF train: gradients for 6 of 6 parameters",
    "CNF eval: RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn",
]
sys.exit(seen != expected)
PYTHON
