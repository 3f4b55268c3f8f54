"""The held-out loss of a pretraining: its value, the fixed crops and masks, the log, the curves."""

import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator

from helpers.commands import SMALL
from helpers.models import TINY
from helpers.paths import ROOT
from simmim_plugin import SimMIM, config
from simmim_plugin.apis import train
from simmim_plugin.visualization import curves

CONFIG = str(ROOT / 'configs/simmim_vit-tiny_folder.py')


def test_equals_the_hand_calculation_for_a_prediction_of_zero():
    """Images of different mask ratios count the same, whatever the batches and the padding of the last one."""
    model = SimMIM(backbone=TINY, data_preprocessor=dict(type='SimMIMDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3))
    torch.nn.init.zeros_(model.head.decoder.weight)
    torch.nn.init.zeros_(model.head.decoder.bias)
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8), np.zeros((3, 4, 4), np.uint8)
    masks[0, 0, 0] = masks[1, :2] = masks[2] = 1
    evaluator = Evaluator(dict(type='simmim_plugin.HeldOutLoss'))
    for chosen in ([0, 1], [2, 0]):  # the second rank pads with the first image
        batch = dict(inputs=torch.from_numpy(images[chosen]), mask=torch.from_numpy(masks[chosen]))
        evaluator.process(model.val_step(batch), batch)
    pixels = masks.repeat(16, 1).repeat(16, 2)[:, None].astype(bool)
    expected = [images[i][np.broadcast_to(pixels[i], (3, 64, 64))].mean() for i in range(3)]
    assert evaluator.evaluate(3) == pytest.approx({'held_out/loss': np.mean(expected)}, rel=1e-5)


def test_two_masks_have_their_errors():
    mask = torch.ones(2, 4, 4)
    values = SimMIM(backbone=TINY)(torch.rand(2, 3, 64, 64), mask, 'predict', mask_local=mask, mask_global=mask)
    assert [sorted(image) for image in values] == [['error_global', 'error_local', 'loss']] * 2


def training(image_folder, tmp_path, name, **options):
    """Two epochs; the values of the held-out loss."""
    held_out, work_dir = tmp_path / 'others', tmp_path / name
    shutil.copytree(image_folder / 'part0', held_out, dirs_exist_ok=True)
    small = dict(option.split('=') for option in SMALL)
    small = {key: json.loads(value.lower()) for key, value in small.items()}
    options = {
        **small, 'data_root': str(image_folder / 'part1'), 'val_root': str(held_out), 'train_dataloader.batch_size': 2,
        'train_cfg.max_epochs': 2, 'val_dataloader.batch_size': 4, 'log_level': 'ERROR', 'experiment_name': name,
        **{key.replace('__', '.'): value for key, value in options.items()},
    }  # fmt: skip
    cfg = config.load_config(CONFIG, options)
    runner = train.build_runner(train.prepare(cfg, CONFIG, str(work_dir)))
    train.run_training(runner)
    return [line['held_out/loss'] for line in curves.read_scalars(work_dir) if 'held_out/loss' in line]


def test_one_option_turns_it_on_and_masks_are_fixed(image_folder, tmp_path, monkeypatch):
    first = training(image_folder, tmp_path, 'frozen', optim_wrapper__optimizer__lr=0.0)
    assert len(first) == 2 and first[0] == first[1] and 0.3 < first[0] < 3
    other = training(
        image_folder, tmp_path, 'workers', optim_wrapper__optimizer__lr=0.0, val_dataloader__num_workers=2,
        val_dataloader__batch_size=3, train_cfg__max_epochs=1,
    )  # fmt: skip
    assert other == pytest.approx(first[:1], rel=1e-5)

    compiled = dict(type='simmim_plugin.CompileHook', backend='eager')
    trained = training(image_folder, tmp_path, 'trained')
    assert trained[0] != trained[1]
    assert training(image_folder, tmp_path, 'compiled', custom_hooks=[compiled]) == pytest.approx(trained, rel=1e-5)

    monkeypatch.setattr(plt, 'close', lambda figure: None)
    curves.draw_curves([tmp_path / 'trained'], tmp_path / 'curves.png')
    drawn = {line.get_label(): line for line in plt.gcf().axes[0].lines}['trained: held out']
    plt.close('all')
    assert np.asarray(drawn.get_xydata()).tolist() == [[1, trained[0]], [2, trained[1]]]


@pytest.mark.parametrize('name', ['simmim_vit-b_folder', 'simmim_vit-tiny_folder', 'simmim_vit-b_multichannel'])
def test_held_out_data_are_read_as_the_training_data_without_flips(name):
    cfg = config.load_config(f'{name}.py', {'val_root': '/others', 'mask.mask_ratio': 0.3})
    trained, held_out = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert held_out.data_root == '/others' and cfg.val_evaluator and cfg.val_cfg is not None
    assert held_out.pipeline == [part for part in trained.pipeline if part.type != 'RandomHorizontalFlip']
    assert 'val_dataloader' not in config.load_config(f'{name}.py')
