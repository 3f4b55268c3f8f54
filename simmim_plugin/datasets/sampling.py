"""Samples that know which one of the training they are, so that what is drawn for them depends on that alone."""

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader


class NumberedIndex(int):
    """Index of a sample that knows what it is drawn for, through worker processes, too.

    It survives MMEngine's RepeatDataset and ConcatDataset, which compute with it.

    Args:
        index: Of the sample in the data set.
        iteration: Of the training, from 0. `ImageFolder` hands it to the pipeline.
        key: Seed of the run, and the number of the sample among all that its processes draw; None leaves the random
            state alone.
    """

    iteration: int
    key: tuple[int, int] | None

    def __new__(cls, index: int, iteration: int, key: tuple[int, int] | None = None) -> 'NumberedIndex':
        """Make an index."""
        self = super().__new__(cls, index)
        self.iteration, self.key = iteration, key
        return self

    def __mod__(self, length: int) -> 'NumberedIndex':
        return NumberedIndex(int(self) % length, self.iteration, self.key)

    def __sub__(self, offset: int) -> 'NumberedIndex':
        return NumberedIndex(int(self) - offset, self.iteration, self.key)

    def __reduce__(self) -> tuple:
        return NumberedIndex, (int(self), self.iteration, self.key)


class NumberedSampler:
    """Wrap a sampler so that its indices know the iteration, and the number in it, that they are drawn for.

    What a worker draws then depends on these alone: not on the number of workers or processes, on how far ahead a
    worker works, or on when it was started.

    Args:
        sampler: The data loader's sampler of indices.
        loader: The data loader.
        seed: Of the run, the same in all processes; None leaves the random state of workers alone.
    """

    def __init__(self, sampler: Any, loader: DataLoader, seed: int | None = None) -> None:
        self.sampler, self.seed = sampler, seed
        self.batch_size, self.batches = batch_size_of(loader), len(loader)
        self.rank, self.world_size = get_dist_info()
        self.next_iteration = 0
        self.skipped = 0

    def skip_batches(self, batches: int) -> None:
        """Leave out the first so many batches of the next epoch."""
        self.skipped = batches

    def __iter__(self) -> Iterator[NumberedIndex]:
        first, start = self.next_iteration - self.skipped, self.skipped * self.batch_size
        self.next_iteration, self.skipped = first + self.batches, 0
        for position, index in enumerate(self.sampler):
            if position >= start:
                number = (first * self.batch_size + position) * self.world_size + self.rank
                key = None if self.seed is None else (self.seed, number)
                yield NumberedIndex(int(index), first + position // self.batch_size, key)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as `set_epoch`, is the wrapped sampler's."""
        if name == 'sampler':  # not set yet, while it is copied
            raise AttributeError(name)
        return getattr(self.sampler, name)


def number_samples(loader: DataLoader, seed: int | None = None) -> NumberedSampler:
    """Make the sampler of a data loader a numbered one; one that is there already stays.

    Args:
        loader: The data loader, whose workers are not started yet.
        seed: See `NumberedSampler`.
    """
    batches: Any = loader.batch_sampler
    if not isinstance(batches.sampler, NumberedSampler):
        batches.sampler = NumberedSampler(batches.sampler, loader, seed)
    return batches.sampler


def batch_size_of(loader: DataLoader) -> int:
    """Images per batch of a data loader, also where a batch sampler makes the batches."""
    sampler: Any = loader.batch_sampler
    return loader.batch_size or sampler.batch_size
