"""A user's own network: an ``nn.Sequential`` of torch's layers in residual blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pyro_resflow.logdet import LogDetEstimator
from pyro_resflow.nn import Chain, LipSwish
from pyro_resflow.transforms import Compose, Inverse, Residual

from .contenders import Contender, Gain, OurModel, plain_network
from .workloads import Workload


@dataclass(frozen=True)
class UnitGains(Workload):
    """A workload whose activations have no gain at their input, as ``nn.SiLU`` has none."""

    @torch.no_grad()
    def network(self) -> Chain:
        net = super().network()
        for layer in net:
            if isinstance(layer, LipSwish):
                layer.raw_beta.fill_(math.log(math.expm1(1)))  # softplus of it is 1
        return net


class OwnModel(OurModel):
    """Residual transforms of plain networks; nothing measures their norms.

    Args:
        workload: a workload with unit gains.
        logdet: estimator of the log-determinants; ``None`` for the default.
    """

    def __init__(self, workload: Workload, logdet: LogDetEstimator | None = None) -> None:
        super().__init__(workload, logdet)
        self.event_dim = len(workload.event_shape)
        self.logdet = logdet
        self.load(workload.networks())

    def load(self, networks: Sequence[Chain]) -> None:
        plain = [without_gains(plain_network(net)) for net in networks]
        options = {"event_dim": self.event_dim, "logdet": self.logdet}
        self.flow = Inverse(Compose([Residual(net, **options) for net in plain]))


def without_gains(net: nn.Sequential) -> nn.Sequential:
    """The network without multiplications by 1."""
    return nn.Sequential(*(layer for layer in net if not isinstance(layer, Gain)))


@dataclass(frozen=True)
class OwnNetwork(Contender):
    """This package with plain networks.

    Args:
        logdet: estimator of the log-determinants; ``None`` for the default.
    """

    logdet: LogDetEstimator | None = None

    def build(self, workload: Workload) -> OwnModel:
        return OwnModel(workload, self.logdet)


OWN_NETWORK = OwnNetwork("pyro-resflow, own network")
