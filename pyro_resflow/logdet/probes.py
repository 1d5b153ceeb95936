r"""Probe vectors e with :math:`E[e e^T] = I`, for which :math:`E[e^T A e] = \mathrm{tr} A`."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..rebuilding import Rebuildable

WORD = 31
"""Random bits in a non-negative integer of 32 bits."""


class Probe(Rebuildable):
    """A distribution of probe vectors."""

    @property
    def is_frozen(self) -> bool:
        """Whether every call draws the same probes."""
        return False

    def draw(self, x: Tensor, num_probes: int) -> Tensor:
        """Independent probes for each sample.

        Args:
            x: shape ``(N, *event)``; gives shape, dtype and device.
            num_probes: S.

        Returns:
            Shape ``(S, N, *event)``.
        """
        return self.sample((num_probes, *x.shape), x, None)

    def sample(
        self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draw a tensor of independent entries with mean 0 and variance 1."""
        raise NotImplementedError

    def pack(self, probes: Tensor) -> Tensor:
        """The probes in a compact form, kept for the backward pass."""
        return probes

    def unpack(self, packed: Tensor, like: Tensor) -> Tensor:
        """The packed probes, in the dtype of ``like``."""
        return packed

    def host_generator(self) -> torch.Generator | None:
        """The generator for decisions taken on the host, such as the number of terms."""
        return None


class Rademacher(Probe):
    """Entries +1 or -1 with equal probability: the least variance among independent entries."""

    def sample(
        self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        if like.device.type == "cpu":
            return (
                _random_bits(math.prod(shape), generator)
                .view(shape)
                .to(like.dtype)
                .mul_(2)
                .sub_(1)
            )
        bits = torch.empty(shape, dtype=like.dtype, device=like.device)
        return bits.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)

    def pack(self, probes: Tensor) -> Tensor:
        return probes.to(torch.int8)

    def unpack(self, packed: Tensor, like: Tensor) -> Tensor:
        return packed.to(like.dtype)


def _random_bits(number: int, generator: torch.Generator | None) -> Tensor:
    """Independent bits, 0 or 1 with equal probability, on the CPU, shape ``(number,)``.

    torch draws a number of its own for each bit and is ten times as slow.
    """
    words = torch.empty(-(-number // WORD), dtype=torch.int32, device="cpu")
    words.random_(generator=generator)  # from 0 to 2^31 - 1
    return (words[:, None] & _powers_of_two()).ne_(0).view(-1)[:number]


@lru_cache(maxsize=1)
@torch.inference_mode(False)
def _powers_of_two() -> Tensor:
    return 2 ** torch.arange(WORD, dtype=torch.int32, device="cpu")


class Gaussian(Probe):
    """Standard normal entries."""

    def sample(
        self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        noise = torch.empty(shape, dtype=like.dtype, device=like.device)
        return noise.normal_(generator=generator)


class Frozen(Probe):
    """The same probes at every call and for every sample: a deterministic log-determinant.

    HMC, NUTS and line searches need the same function at every call. With frozen probes, it is a
    fixed approximation of the log-density; more probes bring it closer.

    Args:
        probe: the distribution of the probes; default :class:`Rademacher`.
        seed: seed of the torch generator.
    """

    def __init__(self, probe: Probe | None = None, *, seed: int = 0) -> None:
        self.probe = probe if probe is not None else Rademacher()
        self.seed = seed

    @property
    def is_frozen(self) -> bool:
        return True

    def draw(self, x: Tensor, num_probes: int) -> Tensor:
        shape = (num_probes, 1, *x.shape[1:])
        generator = torch.Generator(x.device).manual_seed(self.seed)
        return self.probe.sample(shape, x, generator).expand(num_probes, *x.shape)

    def pack(self, probes: Tensor) -> Tensor:
        return self.probe.pack(probes[:, :1])  # all samples have the same

    def unpack(self, packed: Tensor, like: Tensor) -> Tensor:
        return self.probe.unpack(packed, like).expand(len(packed), *like.shape)

    def host_generator(self) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(self.seed)
