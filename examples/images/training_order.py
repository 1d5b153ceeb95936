"""The order of the training images, in which a resumed run continues."""

from collections.abc import Iterator, Sized

from torch.utils.data import DistributedSampler


class TrainingOrder(DistributedSampler[int]):
    """Shuffled indices that depend on the seed and the epoch alone.

    Several processes share one order: their batches together are the batch of a single process.

    Args:
        images: The data set.
        seed: Seed of all epochs.
        rank: Index of this process.
        processes: Number of processes.
        epoch: The first epoch.
        position: Number of images of that epoch that this process has already used.
    """

    def __init__(
        self,
        images: Sized,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        epoch: int = 0,
        position: int = 0,
    ) -> None:
        super().__init__(images, processes, rank, shuffle=True, seed=seed, drop_last=True)
        self.epoch = epoch
        self.position = position

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch; keep the position if it is the current one."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.position = 0

    def __iter__(self) -> Iterator[int]:
        return iter([*super().__iter__()][self.position :])
