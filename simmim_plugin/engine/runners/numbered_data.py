"""Pipelines of the training data, for hooks that change them by the iteration."""

from typing import Any, TypeVar

from mmengine.dataset import BaseDataset

from simmim_plugin.datasets.image_folder import ImageFolder
from simmim_plugin.datasets.sampling import number_samples
from simmim_plugin.engine.runners.mmengine_internals import has_started_workers
from simmim_plugin.utils.runner_protocol import TrainingRunner

T = TypeVar('T')


def numbered_pipelines(runner: TrainingRunner, hook: str) -> list[list[Any]]:
    """Transforms of each training data set, whose samples carry their iteration to the workers from now on.

    Args:
        runner: The runner, in `before_train`: workers that start later have copies of the transforms as they are then.
        hook: Name of the hook, for messages.

    Raises:
        ValueError: The workers have been started, or a data set does not pass the iteration to its transforms.
    """
    loader = runner.train_dataloader
    if loader.num_workers > 0 and has_started_workers(runner.train_loop):
        raise ValueError(
            f'{hook}: this MMEngine starts the {loader.num_workers} workers of IterBasedTrainLoop before its hooks; '
            'use onedl-mmengine >= 0.10.12, EpochBasedTrainLoop, or train_dataloader.num_workers=0'
        )
    pipelines = [dataset.pipeline.transforms for dataset in _datasets(loader.dataset, hook)]
    number_samples(loader)
    return pipelines


def transforms_of(pipelines: list[list[Any]], kind: type[T]) -> list[T]:
    """The transforms of a kind in all pipelines."""
    return [transform for transforms in pipelines for transform in transforms if isinstance(transform, kind)]


def _datasets(dataset: Any, hook: str) -> list[BaseDataset]:
    """Base datasets inside MMEngine's RepeatDataset, ClassBalancedDataset and ConcatDataset."""
    if isinstance(dataset, ImageFolder):
        return [dataset]
    kind = type(dataset).__name__
    if kind in ('RepeatDataset', 'ClassBalancedDataset'):
        return _datasets(dataset.dataset, hook)
    if kind == 'ConcatDataset':
        return [base for part in dataset.datasets for base in _datasets(part, hook)]
    raise ValueError(
        f'{hook} needs ImageFolder (also inside RepeatDataset, ConcatDataset ...) as training data, got {kind}, '
        'which does not pass the iteration to the transforms'
    )
