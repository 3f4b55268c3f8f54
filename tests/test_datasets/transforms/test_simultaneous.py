"""Local and global masks from the config to the log."""

import json
import re
import sys

import pytest

from helpers.commands import SMALL, run
from helpers.paths import ROOT
from simmim_plugin.checkpoints.loading import load_pretrained


@pytest.mark.slow
def test_both_masks_are_logged_separately(image_folder, tmp_path):
    (tmp_path / 'leaf.py').write_text(
        f"_base_ = '{ROOT / 'configs/simmim_vit-tiny_folder.py'}'\n"
        "mask = dict(_delete_=True, type='SimMIMMaskGenerator', local=dict(ratio=0.5, unit=16),\n"
        '            global_=dict(ratio=0.25, unit=32), model_patch_size=8)\n'
        "model = dict(head=dict(num_layers=2, loss=dict(criterion='l2', scope='all', frequency_weight=0.1)))\n"
        'train_cfg = dict(max_epochs=2)\n'
    )
    command = [sys.executable, ROOT / 'tools/train.py', tmp_path / 'leaf.py', '--work-dir', tmp_path / 'out']
    log = run(*command, '--cfg-options', f'data_root={image_folder}', *SMALL)
    lines = re.findall(r'  loss: ([\d.]+)  error_local: ([\d.]+)  error_global: ([\d.]+)', log)
    assert len(lines) == 6  # two epochs of three iterations
    # At the start the model predicts about 0: its squared error is about the images' mean square, wherever it looks.
    loss, local, global_ = map(float, lines[0])
    assert local == pytest.approx(global_, rel=0.5)
    # All pixels count once; the frequency term adds less than its weight times the error.
    assert 0.5 * local < loss < 2 * local
    assert re.search(
        r'masked-pixel loss [\d.]+ \(predicting the visible mean: [\d.]+\), local [\d.]+, global [\d.]+', log
    )
    (scalars,) = (tmp_path / 'out').glob('*/vis_data/scalars.json')
    fixed = [json.loads(line) for line in scalars.read_text().splitlines() if 'fixed/loss' in line]
    assert len(fixed) == 3 and all({'fixed/loss_local', 'fixed/loss_global'} <= set(line) for line in fixed)
    model, pipeline = load_pretrained(tmp_path / 'out' / 'epoch_2.pth')
    assert len(model.head.decoder) == 3 and pipeline[3]['local'] == {'ratio': 0.5, 'unit': 16}
