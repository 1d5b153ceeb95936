"""The order of the training images, which a resumed run takes up where it was left."""

from collections.abc import Iterator, Sized

from torch.utils.data import DistributedSampler


class TrainingOrder(DistributedSampler[int]):
    """Shuffled indices, a function of the seed and the epoch alone.

    Several processes share the order of one: their batches together hold the images of its batch.

    Args:
        images: The data set.
        seed: Seed of all epochs.
        rank: Number of this process.
        processes: How many there are.
        epoch: The epoch to begin with.
        position: Images of that epoch that this process has already had.
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
        """Go to the start of an epoch; within the one that was begun, stay."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.position = 0

    def __iter__(self) -> Iterator[int]:
        return iter([*super().__iter__()][self.position :])
