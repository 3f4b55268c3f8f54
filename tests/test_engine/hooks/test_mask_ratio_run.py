"""Ratios that change over the iterations, in real training runs."""

import json
import math
import sys

import pytest

from helpers.commands import SMALL, run, scalars
from helpers.mask_ramp import ratio_at
from helpers.paths import ROOT

LEAF = """
_base_ = {base!r}
custom_imports = dict(imports=['count_masks'])
custom_hooks = [
    dict(type='ReconstructionHook', interval=1),
    *{ramps!r},
    dict(type='CountMasks'),
]
{more}
"""
COUNT_MASKS = """
import json
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class CountMasks(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        counts = {name: mask.sum((1, 2)).tolist() for name, mask in data_batch.items() if name.startswith('mask')}
        with open(Path(runner.work_dir) / 'counts.txt', 'a') as file:
            file.write(json.dumps([runner.iter, counts]) + '\\n')
"""
WORKERS = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']


@pytest.fixture
def leaf(tmp_path, monkeypatch, image_folder):
    """Train a leaf config; the masks that the model got, and the logged lines."""
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    (tmp_path / 'count_masks.py').write_text(COUNT_MASKS)

    def train(name, *options, ramps, more='', flags=()):
        base = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
        (tmp_path / 'leaf.py').write_text(LEAF.format(base=base, ramps=ramps, more=more))
        work_dir = tmp_path / name
        run(
            sys.executable, ROOT / 'tools/train.py', tmp_path / 'leaf.py', '--work-dir', work_dir, *flags,
            '--cfg-options', f'data_root={image_folder}', *SMALL, *WORKERS, *options,
        )  # fmt: skip
        counted = [json.loads(line) for line in (work_dir / 'counts.txt').read_text().splitlines()]
        return dict(counted), {line['iter'] - 1: line for line in scalars(work_dir)}

    return train


@pytest.mark.slow
def test_resumed_training_continues_the_ramp(leaf, tmp_path):
    # 12 images in batches of 4, 3 iterations per epoch. 16 units of 2 x 2 tokens.
    ramps = [dict(type='MaskRatioHook', start=0.1, end=0.9, begin=1, until=8)]
    straight, logged = leaf('straight', 'train_cfg.max_epochs=3', ramps=ramps)
    resumed, logged_again = leaf(
        'resumed', 'train_cfg.max_epochs=3', ramps=ramps, flags=['--resume', tmp_path / 'straight/epoch_1.pth']
    )
    assert sorted(straight) == sorted(logged) == list(range(9))
    assert sorted(resumed) == sorted(logged_again) == list(range(3, 9))
    for i in range(9):
        ratio = ratio_at(i, begin=1, until=8)
        tokens = 4 * math.ceil(round(16 * ratio, 6))
        assert straight[i] == {'mask': [tokens] * 4}
        assert logged[i]['mask_ratio'] == pytest.approx(ratio, abs=1e-4)
        if i >= 3:
            assert resumed[i] == straight[i]
            assert logged_again[i]['mask_ratio'] == logged[i]['mask_ratio']


@pytest.mark.slow
def test_training_logs_the_error_of_both_masks_and_both_ratios(leaf):
    more = (
        "mask = dict(_delete_=True, type='SimMIMMaskGenerator', local=dict(ratio=0.75, unit=16),\n"
        '    global_=dict(ratio=0.1, unit=32), model_patch_size=8)\n'
    )
    ramps = [
        dict(type='MaskRatioHook', start=0.25, argument='local.ratio'),
        dict(type='MaskRatioHook', start=0.75, end=0.25, argument='global_.ratio', until=4),
    ]
    counted, logged = leaf('work', 'train_cfg.max_epochs=2', ramps=ramps, more=more)
    for i in range(6):
        local, coarse = 0.25 + 0.5 * i / 6, max(0.25, 0.75 - 0.5 * i / 4)
        assert logged[i]['local_ratio'] == pytest.approx(local, abs=1e-4)
        assert logged[i]['global_ratio'] == pytest.approx(coarse, abs=1e-4)
        assert counted[i]['mask_local'] == [4 * math.ceil(round(16 * local, 6))] * 4
        assert counted[i]['mask_global'] == [16 * math.ceil(round(4 * coarse, 6))] * 4
        errors = logged[i]['error_local'], logged[i]['error_global']
        assert all(0 < error < 3 for error in errors)
        assert min(errors) * 0.5 < logged[i]['loss'] < max(errors) * 2  # the total is not their sum with the loss
