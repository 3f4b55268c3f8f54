"""Labelled images: folders of systems are no classes, empty classes are named, several folders, lists of files."""

import logging
import shutil

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmpretrain.registry import DATASETS

from helpers.commands import SIMMIM, run
from helpers.labelled import make_labelled
from helpers.paths import ROOT
from simmim_plugin import ClassFolders, LabelledFolder
from simmim_plugin.config import load_config
from simmim_plugin.datasets.class_names import class_names, fill_in_classes

HIDDEN = ('.ipynb_checkpoints', '@eaDir', '__MACOSX')


@pytest.fixture
def data(tmp_path):
    return make_labelled(tmp_path / 'data', dict(cat=3, dog=2, owl=2), dict(cat=1, dog=1, owl=1))


def labels(dataset):
    return [dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))]


def test_the_same_samples_as_mmpretrain(data):
    ours = ClassFolders(str(data), data_prefix='train')
    theirs = DATASETS.build(dict(type='CustomDataset', data_root=str(data), data_prefix='train', pipeline=[]))
    assert ours.metainfo['classes'] == theirs.metainfo['classes'] == ('cat', 'dog', 'owl')
    keys = ('img_path', 'gt_label')
    assert [[ours.get_data_info(i)[k] for k in keys] for i in range(7)] == [
        [theirs.get_data_info(i)[k] for k in keys] for i in range(7)
    ]


def test_hidden_folders_are_no_classes_for_head_metrics_and_probes(data):
    for part in ('train', 'val'):
        for name in HIDDEN:
            shutil.copytree(data / part / 'cat', data / part / name)
    cfg = load_config('finetune/vit-tiny_folder.py', {'data_root': str(data)})
    assert cfg.model.head.num_classes == 3
    for split in ('train', 'val'):
        config = {k: v for k, v in cfg[f'{split}_dataloader'].dataset.items() if k not in ('type', 'pipeline')}
        dataset = ClassFolders(**config)
        assert dataset.metainfo['classes'] == ('cat', 'dog', 'owl') and set(labels(dataset)) == {0, 1, 2}
    assert LabelledFolder(data).classes == ['cat', 'dog', 'owl']
    theirs = ConfigDict(type='CustomDataset', data_root=str(data), data_prefix='train')
    with pytest.raises(ValueError, match=r"CustomDataset takes '.*' for a class; remove it, or set type='simmim_pl"):
        class_names(theirs)


def test_classes_that_are_empty_or_in_one_split_only_are_named(data, tmp_path):
    (data / 'train/fox').mkdir()
    handler = logging.FileHandler(tmp_path / 'log.txt')
    MMLogger.get_current_instance().addHandler(handler)
    ClassFolders(str(data), data_prefix='train')
    MMLogger.get_current_instance().removeHandler(handler)
    assert 'has no image of fox' in (tmp_path / 'log.txt').read_text()
    shutil.move(data / 'val/dog', data / 'val/cow')
    with pytest.raises(ValueError, match=r'\(missing: dog, fox; only here: cow\)'):
        load_config('finetune/vit-tiny_folder.py', {'data_root': str(data)})
    with pytest.raises(ValueError, match=r'has folders that are no classes: cow; there are cat, dog, owl'):
        ClassFolders(str(data), data_prefix='val', metainfo=dict(classes=['cat', 'dog', 'owl']))


def test_several_folders_are_joined_by_the_names_of_their_classes(data, tmp_path):
    other = make_labelled(tmp_path / 'other', dict(cat=1, yak=2), dict(owl=1))
    roots = [str(data), str(other)]
    joined = ClassFolders(roots, data_prefix='train')
    assert joined.metainfo['classes'] == ('cat', 'dog', 'owl', 'yak')
    assert np.bincount(labels(joined)).tolist() == [4, 2, 2, 2]
    assert class_names(dict(data_root=roots, data_prefix='train')) == ['cat', 'dog', 'owl', 'yak']


def test_a_list_of_files_has_the_names_of_the_classes_from_metainfo(data):
    shutil.copy(data / 'train/cat/0.png', data / 'a.png')
    (data / 'train.txt').write_text('a.png 1\ntrain/owl/0.png 0\n')
    dataset = ClassFolders(str(data), ann_file='train.txt', metainfo=dict(classes=['owl', 'cat']))
    assert labels(dataset) == [1, 0]
    with pytest.raises(ValueError, match=r"'train.txt'.* has the label 1; give one below 1"):
        ClassFolders(str(data), ann_file='train.txt', metainfo=dict(classes=['owl']))
    with pytest.raises(ValueError, match=r"ann_file='train.txt' has no names of classes: set metainfo=dict\(classes="):
        ClassFolders(str(data), ann_file='train.txt')
    flat = ConfigDict(data_root=str(data), data_prefix='train/cat', ann_file='train.txt')
    with pytest.raises(ValueError, match=r'has labels, but no names of classes, .*set metainfo=dict\(classes=\['):
        fill_in_classes(ConfigDict(num_classes=None), [flat])


def test_finetune_on_several_folders(data, tmp_path):
    other = make_labelled(tmp_path / 'other', dict(cat=4, yak=5), dict(cat=1, dog=1, owl=1, yak=1))
    checkpoint = ROOT / 'tests/data/revision_2b0f184/epoch_1.pth'
    shutil.copytree(data / 'val/owl', data / 'val/yak')
    (other / 'train/.ipynb_checkpoints').mkdir()
    output = run(*SIMMIM, 'finetune', data, other, '--checkpoint', checkpoint, '--epochs', '1', '--batch-size', '4',
                 '--out', tmp_path / 'out')  # fmt: skip
    assert 'classes: 4, ' in output and '16 images' in output
    assert Config.fromfile(tmp_path / 'out/config.py').data_root == [str(data), str(other)]
    assert (tmp_path / 'out/epoch_1.pth').exists()


def test_a_config_with_lists_of_files(data, tmp_path):
    """As in docs/finetune.md."""
    for part in ('train', 'val'):
        (data / f'{part}.txt').write_text(
            'cat/0.png 1\ndog/0.png 0\nowl/0.png 0\n' if part == 'train' else 'cat/0.png 1'
        )
    (tmp_path / 'leaf.py').write_text(f"""
_base_ = {str(ROOT / 'configs/finetune/vit-tiny_folder.py')!r}
data_root = {str(data)!r}
train_dataloader = dict(dataset=dict(ann_file='train.txt', data_prefix='train'))
val_dataloader = dict(dataset=dict(ann_file='val.txt', data_prefix='val'))
test_dataloader = val_dataloader
classes = ['other', 'cat']
""")
    cfg = load_config(str(tmp_path / 'leaf.py'))
    assert cfg.model.head.num_classes == 2
    config = {key: value for key, value in cfg.train_dataloader.dataset.items() if key not in ('type', 'pipeline')}
    assert labels(ClassFolders(**config)) == [1, 0, 0]
