"""Lightning's weight averages of flows: their scores, their norms and their checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

pl = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint  # noqa: E402

from pyro_resflow import residual_flow  # noqa: E402
from pyro_resflow.logdet import Exact  # noqa: E402
from pyro_resflow.nn import LipschitzLayer, check_contraction  # noqa: E402
from tests.nn.layers import operator_norm  # noqa: E402

DECAY = 0.9
EXCESS = 1.01
"""The most that a layer's norm may exceed its coefficient by while its weights move."""


class Density(pl.LightningModule):
    """A flow fitted to vectors, which checks its norms at every step and validation."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = residual_flow(3, 2, [8], fast="density", logdet=Exact())
        self.average: dict[str, Tensor] = {}
        self.validated: list[float] = []

    def score(self, x: Tensor) -> Tensor:
        base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [self.flow]).log_prob(x).mean()

    def checked_score(self, x: Tensor) -> Tensor:
        score = self.score(x)
        check_contraction(self.flow)
        layers = [each for each in self.flow.modules() if isinstance(each, LipschitzLayer)]
        assert all(operator_norm(each) < EXCESS * each.norm.coefficient for each in layers)
        return score

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return -self.checked_score(batch[0])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.validated.append(self.checked_score(batch[0]).item())

    def on_train_batch_end(self, *_: Any) -> None:
        """Average by hand, after each optimizer step."""
        for name, parameter in self.flow.named_parameters():
            new = parameter.detach().clone()
            old = self.average.get(name)
            self.average[name] = new if old is None else DECAY * old + (1 - DECAY) * new

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


def test_an_average_scores_is_a_contraction_and_comes_back_from_its_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "lightning.pytorch")
    data = torch.randn(128, 3).sign() + 0.3 * torch.randn(128, 3)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), 32)
    model = Density()
    trainer = pl.Trainer(
        max_epochs=3,
        callbacks=[EMAWeightAveraging(decay=DECAY), ModelCheckpoint(tmp_path, save_last=True)],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, batches, batches)
    assert sum(model.validated[-4:]) > sum(model.validated[:4])
    for name, parameter in model.flow.named_parameters():
        torch.testing.assert_close(parameter.detach(), model.average[name])
    expected = model.eval().checked_score(data)

    path = tmp_path / "last.ckpt"
    loaded = Density.load_from_checkpoint(path, weights_only=True).eval()
    torch.testing.assert_close(loaded.checked_score(data), expected)
