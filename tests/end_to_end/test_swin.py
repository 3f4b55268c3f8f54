"""The published Swin recipe at a tiny size, as a user runs it: pretrain, resume, look, fine-tune, test."""

import sys

import numpy as np
import pytest
from PIL import Image

from helpers.commands import TOOLS, run, scalars
from helpers.labelled import make_labelled
from helpers.paths import ROOT
from helpers.swin import SMALL

pytest.importorskip('mmpretrain.models')  # imported once, here, for all commands, which are forked
CONFIG = ROOT / 'configs/simmim_swin-b_192px.py'
FINETUNE = [
    *(option for option in SMALL if option.startswith(('model.backbone.arch', 'train_dataloader', 'auto_scale_lr'))),
    'model.backbone.img_size=128',
    'model.backbone.window_size=4',
    'model.head.in_channels=64',
    'crop.scale=128',
    'resize.scale=132',
    'center_crop.crop_size=128',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'train_cfg.max_epochs=1',
]


def test_pretrain_resume_reconstruct_and_finetune(image_folder, tmp_path):
    work, images = tmp_path / 'work', sorted(image_folder.rglob('*.jpg'))[:2]

    def pretrain(epochs, *flags):
        options = [f'data_root={image_folder}', f'val_root={image_folder}', *SMALL, f'train_cfg.max_epochs={epochs}']
        options += ['val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False']
        return run(sys.executable, TOOLS / 'train.py', CONFIG, '--work-dir', work, *flags, '--cfg-options', *options)

    log = pretrain(1)
    assert 'Fixed images, epoch 1: masked-pixel loss' in log and 'held_out/loss' in log
    log = pretrain(2, '--resume')
    assert 'resumed epoch: 1, iter: 3' in log and [line['iter'] for line in scalars(work)] == [1, 2, 3, 4, 5, 6]
    picture = tmp_path / 'picture.png'
    reconstruct = [sys.executable, TOOLS / 'reconstruct.py', work / 'epoch_2.pth', *images, '--out', picture]
    assert run(*reconstruct).count('masked loss') == 2
    sheet = np.asarray(Image.open(picture))
    assert sheet.shape[1] == 4 * (192 + 4) + 4 and sheet.std() > 10
    run(*reconstruct, '--size', 128, 96, '--mask-ratio', 0.3)  # multiples of the stride
    message = run(*reconstruct, '--size', 72, 64, ok=False)
    assert '--size of 72 x 64 px: both sides must be multiples of the patch, 32 px' in message
    browse = [sys.executable, TOOLS / 'visualize_masks.py', CONFIG, '--masks', 8, '--out', tmp_path / 'masks.png']
    printed = run(*browse, '--photos')
    assert '8 masks over 2304 patches: masked 61.1 %; AvgDist' in printed  # 22 of 36 units

    data = make_labelled(tmp_path / 'data', {'a': 4, 'b': 4}, {'a': 2, 'b': 2})
    leaf = tmp_path / 'finetune.py'
    leaf.write_text(
        f'_base_ = {str(ROOT / "configs/finetune/swin-b_in1k.py")!r}\n'
        "photos = dict(_delete_=True, type='simmim_plugin.ClassFolders', data_root=None, metainfo=None)\n"
        'model = dict(data_preprocessor=dict(num_classes=None), head=dict(num_classes=None))\n'
        "train_dataloader = dict(dataset=dict(data_prefix='train', pipeline=_base_.train_pipeline, **photos))\n"
        "val_dataloader = dict(dataset=dict(data_prefix='val', pipeline=_base_.test_pipeline, **photos))\n"
        'test_dataloader = val_dataloader\n'
    )
    fine = [sys.executable, TOOLS / 'train.py', leaf, '--work-dir', tmp_path / 'fine', '--cfg-options', *FINETUNE]
    log = run(*fine, f'data_root={data}', f'load_from={work}/epoch_2.pth')
    table = 'stages.0.blocks.0.attn.w_msa.relative_position_bias_table'
    assert f'Resized to the model: {table} windows of 2 -> 4' in log
    assert 'new ones, as initialised: head.fc.weight, head.fc.bias' in log
    assert 'Skipped, not in the model: backbone.mask_token, head.decoder.weight, head.decoder.bias' in log
    assert 'layer decay 0.8 over 8 layers' in log and 'accuracy/top1' in log
