"""Random numbers of training: different in each process, and saved for resuming."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class RandomStreams(Callback):
    """Seeds each process differently, and restores the random states of a resumed run.

    Lightning gives all processes the same seed, so that they would draw the same dequantization
    noise and probes, and it saves no random states. Training draws from torch's generators alone;
    this callback saves their states for each process.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, torch.Tensor]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states of the checkpoint, or seed this process."""
        if self._restored is not None and len(self._restored) == trainer.world_size:
            restore_random_states(self._restored[trainer.global_rank], pl_module.device)
        else:
            seeds = torch.Generator().manual_seed(torch.initial_seed())
            drawn = torch.randint(2**63 - 1, (trainer.world_size,), generator=seeds)
            torch.manual_seed(int(drawn[trainer.global_rank]))
        self._restored = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the states of all processes."""
        state = random_states(pl_module.device)
        states = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the states until training starts, since the steps before it draw numbers too."""
        self._restored = checkpoint.get("random_states")


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's generators, of the CPU and of the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set the states of torch's generators."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
