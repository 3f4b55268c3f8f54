"""Data sets reduced to a share of their labelled images."""

import math
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope

from helpers.labelled import make_labelled
from simmim_plugin.datasets.few_labels import few_labels, stratified_subset

COUNTS = {0: 1, 2: 7, 3: 30, 7: 100}
LABELS = np.random.default_rng(0).permutation(np.repeat(list(COUNTS), list(COUNTS.values())))


@pytest.mark.parametrize('fraction', [0.001, 0.01, 0.1, 0.3, 0.5, 1.0])
def test_share_of_each_class_rounded_up(fraction):
    chosen = stratified_subset(LABELS, fraction, seed=3)
    assert chosen == sorted(set(chosen))
    expected = {  # thousandths, so that there is nothing to round
        0.001: {0: 1, 2: 1, 3: 1, 7: 1},
        0.01: {0: 1, 2: 1, 3: 1, 7: 1},
        0.1: {0: 1, 2: 1, 3: 3, 7: 10},
        0.3: {0: 1, 2: 3, 3: 9, 7: 30},
        0.5: {0: 1, 2: 4, 3: 15, 7: 50},
        1.0: COUNTS,
    }[fraction]
    assert {label: int((LABELS[chosen] == label).sum()) for label in COUNTS} == expected


def test_products_that_are_whole_numbers_are_not_rounded_up():
    for percent in range(1, 101):
        for count in (10, 20, 50, 100, 300, 1300):
            expected = -(-percent * count // 100)
            assert len(stratified_subset(np.zeros(count, dtype=int), percent / 100)) == expected
    assert math.ceil(0.07 * 100) == 8  # what it would be without care


def test_seed_determines_the_choice_and_larger_shares_contain_smaller_ones():
    assert stratified_subset(LABELS, 0.3, seed=1) == stratified_subset(LABELS, 0.3, seed=1)
    assert stratified_subset(LABELS, 0.3, seed=1) != stratified_subset(LABELS, 0.3, seed=2)
    small, large = (set(stratified_subset(LABELS, share, seed=1)) for share in (0.1, 0.3))
    assert small < large
    # All images of a class are chosen about equally often.
    members = np.flatnonzero(LABELS == 3)
    often = np.zeros(len(LABELS))
    for seed in range(400):
        often[stratified_subset(LABELS, 0.1, seed)] += 1
    assert often[members].min() > 15 and often[members].max() < 75  # 40, with a deviation of 6


@pytest.fixture
def data(tmp_path) -> Path:
    return make_labelled(tmp_path / 'data', dict(a=11, b=2, c=5), dict(a=1, b=1, c=1))


def config(data: Path, **kwargs: object) -> dict:
    inner = dict(type='mmpretrain.CustomDataset', data_root=str(data), data_prefix='train', pipeline=[])
    return dict(type='simmim_plugin.FewLabels', dataset=inner, **kwargs)


def paths(dataset: BaseDataset) -> list[tuple[str, int]]:
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    for info in infos:
        assert 'abc'[info['gt_label']] == Path(info['img_path']).parent.name
    return [(info['img_path'], info['gt_label']) for info in infos]


def test_wraps_a_data_set_of_mmpretrain_in_a_config(data):
    init_default_scope('mmpretrain')
    built = {(share, rest): DATASETS.build(config(data, fraction=share, rest=rest))
             for share in (0.2, 0.5) for rest in (False, True)}  # fmt: skip
    everything = sorted(str(path) for path in (data / 'train').rglob('*.png'))
    for share, counts in ((0.2, [3, 1, 1]), (0.5, [6, 1, 3])):
        chosen, rest = paths(built[share, False]), paths(built[share, True])
        assert np.bincount([label for _, label in chosen]).tolist() == counts
        assert not {path for path, _ in chosen} & {path for path, _ in rest}
        assert sorted(path for path, _ in chosen + rest) == everything
        assert built[share, False].metainfo['classes'] == ('a', 'b', 'c')
    assert set(paths(built[0.2, False])) < set(paths(built[0.5, False]))
    again, other = (DATASETS.build(config(data, fraction=0.5, seed=seed)) for seed in (0, 1))
    assert paths(again) == paths(built[0.5, False]) != paths(other)

    # Inside another: a share of what the first one left.
    inner = config(data, fraction=0.5, seed=4)
    both = paths(DATASETS.build(dict(type='simmim_plugin.FewLabels', fraction=0.4, dataset=inner)))
    assert set(both) < set(paths(DATASETS.build(inner)))
    assert np.bincount([label for _, label in both]).tolist() == [3, 1, 2]


class Listed(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(img_path=str(i), gt_label=label) for i, label in enumerate(self.metainfo['labels'])]


def test_a_built_data_set():
    dataset = Listed(metainfo=dict(labels=LABELS.tolist()), serialize_data=False)
    assert few_labels(dataset, 0.1, seed=5) is dataset
    assert [int(dataset[i]['img_path']) for i in range(len(dataset))] == stratified_subset(LABELS, 0.1, 5)


def test_bad_arguments_and_labels_are_named():
    for fraction in (0, -0.1, 1.01):
        with pytest.raises(ValueError, match=rf'FewLabels.fraction={fraction} must be a number in \(0, 1\]; 0.1 keeps'):
            few_labels(Listed(metainfo=dict(labels=[0, 1])), fraction)
    for labels in ([0, None], [[0, 1], [1]]):
        with pytest.raises(ValueError, match='FewLabels needs one gt_label per sample, which Listed does not have'):
            few_labels(Listed(metainfo=dict(labels=labels)), 0.5)
    with pytest.raises(ValueError, match=r'fraction=0.8 takes all 6 images, nothing is left for rest=True'):
        few_labels(Listed(metainfo=dict(labels=[0, 0, 0, 1, 1, 1])), 0.8, rest=True)
