"""FewLabels: reduce a data set to a share of its labelled images, per class."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS as ROOT_DATASETS

from simmim_plugin.registry import DATASETS
from simmim_plugin.utils.arguments import flag, number, whole


@DATASETS.register_module(name='FewLabels')
def few_labels(dataset: Any, fraction: float, seed: int = 0, rest: bool = False) -> BaseDataset:
    """Reduce a labelled data set to a share of each class, at least one image each; reproducible by the seed.

    In a config: `dict(type='simmim_plugin.FewLabels', fraction=0.1, dataset=dict(type='CustomDataset', ...))`.

    Args:
        dataset: Config of a data set whose samples have one `gt_label`, or a built one, changed in place.
        fraction: Share in (0, 1], rounded up per class.
        seed: Seed of the selection.
        rest: Keep the other images instead, as validation data for choosing settings.

    Returns:
        The data set itself, with fewer samples.

    Raises:
        ValueError: An argument is out of range, a sample has no single label, or nothing is kept.
    """
    number('FewLabels.fraction', fraction, 0, 1, '0.1 keeps 10 % of the labels', ends='(]')
    whole('FewLabels.seed', seed, 0)
    flag('FewLabels.rest', rest)
    if not hasattr(dataset, 'get_subset_') and 'type' not in (dataset if isinstance(dataset, Mapping) else ()):
        raise ValueError(f'FewLabels.dataset={dataset!r} must be a dict with a type, or a data set')
    built = ROOT_DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
    built.full_init()
    labels = [built.get_data_info(i).get('gt_label') for i in range(len(built))]
    if not all(isinstance(label, int | np.integer) for label in labels):
        raise ValueError(f'FewLabels needs one gt_label per sample, which {type(built).__name__} does not have')
    chosen = stratified_subset(np.array(labels), fraction, seed)
    kept = sorted(set(range(len(labels))) - set(chosen)) if rest else chosen
    if not kept:
        raise ValueError(
            f'FewLabels: fraction={fraction} takes all {len(labels)} images, nothing is left for rest=True'
        )
    built.get_subset_(kept)
    return built


def stratified_subset(labels: np.ndarray, fraction: float, seed: int = 0) -> list[int]:
    """Sorted indices of ceil(fraction * n) random samples of each class, n being its size."""
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = math.ceil(round(fraction * len(members), 9))  # 0.1 * 30 is 3, not 3.0000000000000004
        chosen += generator.permutation(members)[:count].tolist()
    return sorted(chosen)
