"""Contexts at every pixel."""

from __future__ import annotations

import torch

from pyro_resflow.transforms import AtEveryPixel


class Joined(torch.nn.Module):
    """Image and context, concatenated."""

    def forward(self, kept: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.cat([kept, context], dim=1)


def test_the_vector_is_at_every_pixel() -> None:
    kept, context = torch.randn(2, 1, 3, 4), torch.randn(2, 5)
    joined = AtEveryPixel(Joined(), (3, 4))(kept, context)
    assert torch.equal(joined[:, :1], kept)
    assert torch.equal(joined[:, 1:], context.reshape(2, 5, 1, 1) * torch.ones(3, 4))
