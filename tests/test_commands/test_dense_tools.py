"""Train and evaluate the detector and the segmenter that no other test covers, with the tools."""

import sys

import pytest

from helpers.commands import run
from helpers.dense import ARCH, NAMES, make_dense, save_pretraining
from helpers.paths import ROOT

pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")

LOADER = 'num_workers=0, persistent_workers=False'
RETINANET = f"""_base_ = {str(ROOT / 'configs/detection/retinanet_vit-b_coco.py')!r}
model = dict(
    backbone=dict(arch={ARCH | dict(_delete_=True)}, img_size=64, window_size=4, global_blocks=(1,)),
    neck=dict(in_channels=32), bbox_head=dict(num_classes=2), test_cfg=dict(score_thr=0.0),
)
jitter = resize = dict(scale=(96, 96))
crop, pad = dict(crop_size=(96, 96)), dict(size=(96, 96))
data = dict(metainfo=dict(classes={NAMES}), data_prefix=dict(img='images/train/'))
train_dataloader = dict(batch_size=2, {LOADER}, dataset=dict(
    **data, ann_file='annotations/train.json', filter_cfg=dict(min_size=1)))
data['data_prefix'] = dict(img='images/valid/')
val_dataloader = dict({LOADER}, dataset=dict(**data, ann_file='annotations/valid.json'))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""
LINEAR = f"""_base_ = {str(ROOT / 'configs/segmentation/linear_vit-b_ade20k.py')!r}
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch={ARCH | dict(_delete_=True)}, img_size=64, out_indices=(2,), frozen_stages=3),
    decode_head=dict(in_channels=32, channels=32), test_cfg=dict(crop_size=(64, 64), stride=(40, 40)),
)
jitter = resize = dict(scale=(128, 64))
crop = dict(crop_size=(64, 64))
train_dataloader = dict({LOADER}, dataset=dict(
    data_prefix=dict(img_path='images/train', seg_map_path='masks/train')))
val_dataloader = dict({LOADER}, dataset=dict(
    data_prefix=dict(img_path='images/valid', seg_map_path='masks/valid')))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('text', 'last', 'metric'),
    [(RETINANET, 'epoch_1.pth', 'coco/bbox_mAP'), (LINEAR, 'iter_2.pth', 'mIoU')],
    ids=['retinanet', 'linear'],
)
def test_train_and_evaluate(tmp_path, text, last, metric):
    data = make_dense(tmp_path / 'data', dict(train=4, valid=2))
    save_pretraining(tmp_path / 'pretrained.pth')
    (tmp_path / 'leaf.py').write_text(text)
    options = ['--cfg-options', f'data_root={data}', f'load_from={tmp_path / "pretrained.pth"}']
    work = ['--work-dir', tmp_path / 'work']
    for command in (['train.py', tmp_path / 'leaf.py'], ['test.py', tmp_path / 'leaf.py', tmp_path / 'work' / last]):
        log = run(sys.executable, ROOT / 'tools' / command[0], *command[1:], *work, *options)
        assert metric in log, log[-3000:]
        if command[0] == 'train.py':  # 3 blocks of 16 tensors with their tables, patch embedding, tokens, final norm
            assert 'Loaded 54 tensors of load_from' in log
