#!/usr/bin/env bash
# torch 2.14.1
#
# Behaviour: a copy of an optimizer that derives from torch.optim.Optimizer has none of the attributes that the
# subclass has added, whether by copy.copy, copy.deepcopy or pickle: Optimizer.__getstate__ keeps the groups, the
# state and the defaults alone. The copy is made without an error, and its first step raises an AttributeError.
# One would have guessed: a copy has what the original has, as copies of modules and of learning rate schedules do.
# Output seen:
#   copy: the wrapped optimizer is lost
#   deepcopy: the wrapped optimizer is lost
#   pickle: the wrapped optimizer is lost
#   the same for a schedule: kept, kept, kept
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'numpy<3'
run <<'PYTHON'
import copy
import pickle
import sys

import torch


class Wrapped(torch.optim.Optimizer):
    """Adam behind an optimizer of one's own, as one writes it to give two kinds of weights two optimizers."""

    def __init__(self, parameters, lr):
        parameters = list(parameters)
        super().__init__(parameters, {"lr": lr})
        self.inner = torch.optim.Adam(parameters, lr=lr)

    def step(self):
        self.inner.step()


class Schedule(torch.optim.lr_scheduler.LRScheduler):
    """A constant rate, with an attribute of its own."""

    def __init__(self, optimizer):
        self.inner = "mine"
        super().__init__(optimizer)

    def get_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]


copies = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda instance: pickle.loads(pickle.dumps(instance)),
}
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
optimizer = Wrapped([weight], 0.1)
optimizer.step()
schedule = Schedule(torch.optim.Adam([weight], lr=0.1))
lost = []
for name, copied in copies.items():
    lost.append(not hasattr(copied(optimizer), "inner"))
    print(f"{name}: the wrapped optimizer is {'lost' if lost[-1] else 'kept'}")
kept = [hasattr(copied(schedule), "inner") for copied in copies.values()]
print("the same for a schedule:", ", ".join("kept" if each else "lost" for each in kept))
sys.exit(not (all(lost) and all(kept)))
PYTHON
