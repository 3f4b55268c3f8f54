import json
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from helpers.commands import run
from helpers.paths import ROOT
from simmim_plugin.config import load_config
from simmim_plugin.experiments import ablation
from simmim_plugin.experiments.runs import Stages

LEAVES = ROOT / 'configs' / 'ablations'
SMALL = LEAVES / '_base_' / 'small.py'


def test_every_leaf_states_one_difference_to_vit_b():
    base = load_config(str(ROOT / 'configs/simmim_vit-b.py'))
    leaves = sorted(LEAVES.glob('*.py'))
    assert {path.stem for path in leaves} >= {f'ratio_0{i}' for i in range(1, 9)} | {'unit_16', 'unit_64', 'head_mlp'}
    for path in leaves:
        cfg = load_config(str(path))
        heads_differ = cfg.model.head != base.model.head
        masks_differ = cfg.train_dataloader.dataset.pipeline[3] != base.train_dataloader.dataset.pipeline[3]
        backbones_differ = cfg.model.backbone != base.model.backbone
        same_as_published = path.stem in ('ratio_06', 'mask_simmim')
        # That of the document differs in mask and head.
        expected = {'simultaneous': 2}.get(path.stem, 0 if same_as_published else 1)
        assert heads_differ + masks_differ + backbones_differ == expected, path
        cfg.model.head, cfg.model.backbone, cfg.train_dataloader.dataset.pipeline[3] = {}, {}, {}
        expected = base.model.to_dict() | {'head': {}, 'backbone': {}}
        assert cfg.model.to_dict() == expected
        assert cfg.train_cfg == base.train_cfg and cfg.optim_wrapper == base.optim_wrapper
        assert backbones_differ == (path.stem == 'absolute_position')
        assert len(path.read_text().split('"""')[2].strip().splitlines()) <= 5  # below the header


def test_a_size_scales_masks_with_the_patch():
    size = Config.fromfile(SMALL)

    def mask(leaf):
        cfg = ablation.at_size(load_config(str(LEAVES / f'{leaf}.py')), size)
        assert cfg.model.backbone.patch_size == 8 and cfg.train_dataloader.dataset.pipeline[1].size == 80
        assert cfg.model.backbone.arch.embed_dims == 128
        return cfg.train_dataloader.dataset.pipeline[3]

    assert (mask('ratio_03').mask_ratio, mask('ratio_03').mask_patch_size) == (0.3, 16)
    assert mask('unit_64').mask_patch_size == 32
    both = mask('mask_simultaneous')
    assert (both.local.unit, both.global_.unit, both.model_patch_size) == (16, 32, 8)
    assert 'mask_patch_size' not in both
    block = mask('mask_blockwise')  # 75 of 14 x 14 -> 38 of 10 x 10
    assert (block.input_size, block.num_masking_patches, block.min_num_patches) == (10, 38, 8)


def test_table_has_mean_and_range():
    results = {
        'a': [dict(finetune=40.0, knn=30.0, pretrain_seconds=60, finetune_seconds=30), dict(finetune=43.0, knn=31.0)],
        'scratch': [dict(finetune=35.0, finetune_seconds=90)],
    }
    rows = ablation.table(results).splitlines()
    assert rows[2] == '| a | 2 | 41.5 (40.0 to 43.0) | 30.5 (30.0 to 31.0) | 1.0 | 0.5 |'
    assert rows[3] == '| scratch | 1 | 35.0 (35.0 to 35.0) |  |  | 1.5 |'


def test_a_leaf_of_another_kind_is_rejected(labelled, tmp_path):
    leaf, finetune = str(ROOT / 'configs/finetune/vit-tiny_folder.py'), str(LEAVES / '_base_' / 'finetune_small.py')
    settings = ablation.Settings(
        tmp_path, str(labelled), labelled / 'train', [0], {}, [leaf], str(SMALL), finetune, scratch=False
    )
    with pytest.raises(ValueError, match=r'vit-tiny_folder\.py is no config of a SimMIM pretraining'):
        ablation.compare(settings, Stages())
    assert not list(tmp_path.glob('vit-tiny_folder*'))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two classes, red and blue images with noise: 16 a class for training, 4 for evaluation."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 16), ('val', 4)):
        for channel, name in ((0, 'red'), (2, 'blue')):
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                image[..., channel] += 120
                Image.fromarray(image).save(folder / f'{i}.png')
    return tmp_path / 'data'


@pytest.mark.slow
def test_runs_evaluates_and_resumes(labelled, tmp_path):
    arch = 'arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)'
    (tmp_path / 'size.py').write_text(
        f'model = dict(backbone=dict({arch}, img_size=40, patch_size=8))\n'
        'train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False)\n'
        'train_cfg = dict(max_epochs=1)\nparam_scheduler = []\n'
        "custom_hooks = [dict(type='ReconstructionHook', num_images=2, num_measured=2)]\n"
    )
    (tmp_path / 'finetune.py').write_text(
        f"_base_ = '{LEAVES / '_base_' / 'finetune_small.py'}'\n"
        f'model = dict(backbone=dict({arch}, img_size=40), head=dict(in_channels=32))\n'
        'train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False)\n'
        'val_dataloader = dict(num_workers=0, persistent_workers=False)\n'
        'train_cfg = dict(max_epochs=6, val_interval=6)\nparam_scheduler = []\n'
    )
    out = tmp_path / 'out'
    leaves = [LEAVES / 'mask_simultaneous.py', LEAVES / 'ratio_03.py']
    command = [sys.executable, ROOT / 'tools/ablate.py', '--data-root', labelled, '--out', out, '--scratch']
    command += ['--size', tmp_path / 'size.py', '--finetune', tmp_path / 'finetune.py']
    printed = run(*command, *leaves, '--seeds', 0)
    results = json.loads((out / 'results.json').read_text())
    assert list(results) == ['mask_simultaneous', 'ratio_03', 'scratch']
    for name, (only,) in results.items():
        assert only['finetune'] == 100  # red and blue are easy to separate
        assert name == 'scratch' or only['knn'] == 100
    table = (out / 'table.md').read_text()
    assert '| ratio_03 | 1 | 100.0 (100.0 to 100.0) | 100.0 (100.0 to 100.0) |' in table and table in printed
    assert 'ablate.py' in table and 'cores, PyTorch' in table
    assert Image.open(out / 'plot.png').size[0] > 500
    assert 'local 1.' in (out / 'mask_simultaneous/seed_0/pretrain.log').read_text()  # its loss on the fixed images

    # Called again, only the missing part runs; time and weights of the pretraining stay.
    stage = out / 'ratio_03' / 'seed_0'
    before = json.loads((stage / 'result.json').read_text())
    weights = (stage / 'pretrain' / 'epoch_1.pth').stat().st_mtime_ns
    (stage / 'result.json').write_text(json.dumps({'pretrain_seconds': before['pretrain_seconds']}))
    run(*command, *leaves, '--seeds', 0)
    again = json.loads((stage / 'result.json').read_text())
    assert again['pretrain_seconds'] == before['pretrain_seconds']
    assert (again['knn'], again['finetune']) == (before['knn'], before['finetune'])
    assert (stage / 'pretrain' / 'epoch_1.pth').stat().st_mtime_ns == weights

    # Other settings in the same folder are not mixed with the old ones; errors are one line.
    message = run(*command, *leaves, '--seeds', 0, '--cfg-options', 'train_cfg.max_epochs=2', ok=False)
    assert 'has other settings than the current ones; choose another --out' in message
    message = run(*command, leaves[0], leaves[0], ok=False)
    assert 'configs must differ in their file names' in message
    message = run(*command, leaves[0], '--data-root', tmp_path, ok=False)
    assert 'must have a folder per class, found none; data_root is the folder that holds the training' in message
    wide = tmp_path / 'wide.py'
    wide.write_text(f"_base_ = '{tmp_path / 'finetune.py'}'\nmodel = dict(backbone=dict(patch_size=4))\n")
    message = run(*command, leaves[0], '--finetune', wide, '--out', tmp_path / 'o', ok=False)
    assert 'patch_size of the backbone is 8 in' in message and 'the weights would not be loaded' in message
    assert not list((tmp_path / 'o').glob('*/*'))
    message = run(*command, leaves[0], '--finetune', leaves[0], ok=False)
    assert 'is no config of fine-tuning' in message
    message = run(*command, *leaves, '--seeds', 0, '--amp', ok=False)
    assert 'has other settings' in message
    message = run(*command, LEAVES / 'ratio_09.py', ok=False)
    assert "ratio_09.py' does not exist" in message
    message = run(
        *command, leaves[0], '--out', tmp_path / 'o', '--cfg-options', 'optim_wrapper.optimizer.lrr=1', ok=False
    )
    assert "unexpected keyword argument 'lrr'" in message and 'pretrain.log' in message
