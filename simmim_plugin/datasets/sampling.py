"""Indices that carry their position in the run, so that augmentation depends on nothing else."""

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader


class NumberedIndex(int):
    """Index of a sample that carries its position in the run, also to worker processes.

    Position and key survive the arithmetic of MMEngine's RepeatDataset and ConcatDataset.

    Args:
        index: Index of the sample in the data set.
        iteration: Iteration of the training, from 0. `ImageFolder` passes it to the pipeline.
        key: Seed of the run, and number of the sample among those of all ranks; None leaves the random state unchanged.
    """

    iteration: int
    key: tuple[int, int] | None

    def __new__(cls, index: int, iteration: int, key: tuple[int, int] | None = None) -> 'NumberedIndex':
        """Create an index."""
        self = super().__new__(cls, index)
        self.iteration, self.key = iteration, key
        return self

    def __mod__(self, length: int) -> 'NumberedIndex':
        return NumberedIndex(int(self) % length, self.iteration, self.key)

    def __sub__(self, offset: int) -> 'NumberedIndex':
        return NumberedIndex(int(self) - offset, self.iteration, self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        return NumberedIndex, (int(self), self.iteration, self.key)


class NumberedList(list[int]):
    """A list of indices that gives a `NumberedIndex` for one."""

    def __getitem__(self, index: Any) -> Any:
        value = super().__getitem__(index)
        return NumberedIndex(value, index.iteration, index.key) if isinstance(index, NumberedIndex) else value


def _keep_numbers(dataset: Any) -> None:
    """Let the lists of indices in ClassBalancedDataset, KFoldDataset and Subset pass on the numbers."""
    for name in ('repeat_indices', 'indices'):
        if hasattr(dataset, 'dataset') and isinstance(given := getattr(dataset, name, None), list):
            setattr(dataset, name, NumberedList(given))
    for part in [*getattr(dataset, 'datasets', ()), *([dataset.dataset] if hasattr(dataset, 'dataset') else ())]:
        _keep_numbers(part)


class NumberedSampler:
    """Wrap a sampler to yield `NumberedIndex`: indices with their iteration and their number in the run.

    The augmentation of a sample then depends on these alone, not on the number of workers or ranks, on prefetching, or
    on when a worker was started.

    Args:
        sampler: Sampler of the data loader.
        loader: The data loader.
        seed: Seed of the run, the same on all ranks; None leaves the random state of workers unchanged.
    """

    def __init__(self, sampler: Any, loader: DataLoader[Any], seed: int | None = None) -> None:
        self.sampler, self.seed = sampler, seed
        self.batch_size, self.batches = batch_size_of(loader), len(loader)
        self.rank, self.world_size = get_dist_info()
        self.next_iteration = 0
        self.skipped = 0

    def skip_batches(self, batches: int) -> None:
        """Skip the first `batches` batches of the next epoch."""
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
        """Other attributes, such as `set_epoch`, are those of the wrapped sampler."""
        if name == 'sampler':  # not set yet during a copy
            raise AttributeError(name)
        return getattr(self.sampler, name)


def number_samples(loader: DataLoader[Any], seed: int | None = None) -> NumberedSampler:
    """Wrap the sampler of a data loader in a `NumberedSampler`, unless it is one.

    Args:
        loader: The data loader, before its workers start.
        seed: See `NumberedSampler`.
    """
    batches: Any = loader.batch_sampler
    if not isinstance(batches.sampler, NumberedSampler):
        _keep_numbers(loader.dataset)
        batches.sampler = NumberedSampler(batches.sampler, loader, seed)
    return batches.sampler


def batch_size_of(loader: DataLoader[Any]) -> int:
    """Images per batch of a data loader, also where a batch sampler makes the batches."""
    sampler: Any = loader.batch_sampler
    return loader.batch_size or sampler.batch_size
