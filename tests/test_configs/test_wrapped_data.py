"""Data sets inside MMEngine's wrappers, and several folders, in pretraining and fine-tuning."""

import pytest
import torch
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from helpers.commands import SIMMIM, SMALL, run
from helpers.labelled import make_labelled
from helpers.paths import ROOT
from simmim_plugin.config import load_config
from simmim_plugin.datasets.sampling import number_samples
from simmim_plugin.utils.configs import datasets_of

PRETRAIN = """
_base_ = {base!r}
data_root = {data!r}
photos = dict(type='ImageFolder', data_root=None, pipeline=_base_.train_pipeline)
labelled = dict(type='ClassFolders', data_root=None, metainfo=None, data_prefix='train', pipeline=_base_.train_pipeline)
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict(
    type='ConcatDataset', datasets=[
        photos, dict(type='ClassBalancedDataset', oversample_thr=0.9, dataset=labelled)], ignore_keys=['classes'])))
"""
FINETUNE = """
_base_ = {base!r}
data_root = {data!r}
labelled = _base_.train_dataloader.dataset
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict(
    type='ConcatDataset', datasets=[
        dict(type='ClassBalancedDataset', oversample_thr=0.9, dataset=labelled), dict(labelled, data_prefix='val')])))
"""


@pytest.fixture
def data(tmp_path):
    return make_labelled(tmp_path / 'data', dict(cat=6, dog=2), dict(cat=2, dog=2))


def leaf(tmp_path, text, base, data):
    path = tmp_path / 'leaf.py'
    path.write_text(text.format(base=str(ROOT / f'configs/{base}.py'), data=data))
    return str(path)


def test_data_root_classes_and_options_reach_every_data_set_without_warnings(data, tmp_path, capsys):
    path = leaf(tmp_path, PRETRAIN, 'simmim_vit-tiny_folder', str(data))
    options = {'data_root': str(data), 'mask.mask_ratio': 0.5, 'train_pipeline.1.scale': (0.5, 1.0)}
    found = datasets_of(load_config(path, options))
    assert [d.data_root for d in found] == [str(data)] * 2 and [d.get('data_prefix') for d in found] == [None, 'train']
    assert [(d.pipeline[3].mask_ratio, d.pipeline[1].scale) for d in found] == [(0.5, (0.5, 1.0))] * 2
    cfg = load_config(leaf(tmp_path, FINETUNE, 'finetune/vit-tiny_folder', str(data)), {'load.keep': 5})
    assert cfg.model.head.num_classes == 2 and len(datasets_of(cfg)) == 4
    assert all(d.metainfo.classes == ['cat', 'dog'] and d.pipeline[0].keep == 5 for d in datasets_of(cfg))
    several = load_config('simmim_vit-tiny_folder.py', {'data_root': [str(data / 'train'), str(data / 'val')]})
    assert DATASETS.build(dict(several.train_dataloader.dataset, _scope_='simmim_plugin')).__len__() == 12
    assert capsys.readouterr().err == ''


def test_wrappers_keep_the_number_of_the_sample(data):
    """ClassBalancedDataset looks indices up in a list, which gives plain numbers."""
    pipeline = [dict(type='simmim_plugin.LoadImage'), dict(type='simmim_plugin.RandomResizedCrop', size=32),
                dict(type='simmim_plugin.PackSimMIMInputs')]  # fmt: skip
    inner = dict(type='simmim_plugin.ClassFolders', data_root=str(data), data_prefix='train', pipeline=pipeline)
    balanced = dict(type='ClassBalancedDataset', oversample_thr=0.9, dataset=inner)

    def epoch(workers):
        dataset = DATASETS.build(dict(type='ConcatDataset', datasets=[balanced, inner]))
        loader = DataLoader(dataset, 3, num_workers=workers)
        number_samples(loader, seed=5)
        return torch.cat([batch['inputs'] for batch in loader]), len(dataset.datasets[0])

    torch.manual_seed(1)
    (first, count), (again, _) = epoch(0), epoch(2)
    # dog, a quarter of the images, is repeated ceil(sqrt(0.9 / 0.25)) = 2 times, cat ceil(sqrt(0.9 / 0.75)) = 2 times
    assert count == 2 * 8 and len(first) == count + 8
    assert torch.equal(first, again)


def test_pretrain_on_several_folders(data, tmp_path):
    command = (*SIMMIM, 'pretrain', data / 'train', data / 'val', '--arch', 'tiny', '--batch-size', '4', '--dry-run')
    output = run(*command, '--out', tmp_path / 'out')
    assert 'over 12 images' in output
    assert load_config(str(tmp_path / 'out/config.py')).data_root == [str(data / 'train'), str(data / 'val')]


@pytest.mark.parametrize(
    ('text', 'base'),
    [
        (PRETRAIN, 'simmim_vit-tiny_folder'),
        pytest.param(FINETUNE, 'finetune/vit-tiny_folder', marks=pytest.mark.slow),
    ],
)
def test_training(data, tmp_path, text, base):
    options = [option for option in SMALL if text == PRETRAIN or not option.startswith(('model', 'custom_hooks'))]
    output = run(*SIMMIM, 'train', leaf(tmp_path, text, base, str(data)), '--work-dir', tmp_path / 'work',
                 '--cfg-options', *options, 'train_cfg.max_epochs=1', 'param_scheduler=[]')  # fmt: skip
    assert (tmp_path / 'work/epoch_1.pth').exists()
    assert 'oes not' not in output and 'is not the pipeline' not in output and 'full_init' not in output, output


def test_images_without_labels_cannot_be_balanced(data):
    inner = dict(type='simmim_plugin.ImageFolder', data_root=str(data))
    with pytest.raises(ValueError, match="ImageFolder has no labels; ClassBalancedDataset needs type='ClassFolders'"):
        DATASETS.build(dict(type='ClassBalancedDataset', oversample_thr=0.9, dataset=inner))
