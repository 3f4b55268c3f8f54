"""Test-time augmentation in the three frameworks: by our tool and by theirs, from the same checkpoint."""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from torch import nn

from helpers.checkpoints import random_weights
from helpers.commands import run
from helpers.dense import ARCH, make_dense
from helpers.labelled import make_labelled
from helpers.paths import ROOT
from simmim_plugin import SegLabelHook
from simmim_plugin.config import load_config

QUIET = 'num_workers=0, persistent_workers=False'
VIT = f'backbone=dict(arch={ARCH | dict(_delete_=True, num_layers=4)}, img_size=64, patch_size=16'
LEAVES = {
    'mmpretrain': (
        'finetune/vit-tiny_folder.py',
        f'model = dict({VIT}), head=dict(in_channels=32))\nval_dataloader = dict({QUIET})',
        r'accuracy/top1: ([\d.]+)',
    ),
    'mmdet': (
        'detection/retinanet_vit-b_coco.py',
        f'model = dict({VIT}, window_size=4, global_blocks=(1,)), neck=dict(in_channels=32),\n'
        '    bbox_head=dict(num_classes=2), test_cfg=dict(score_thr=0.0))\n'
        "annotated = dict(metainfo=dict(classes=('square', 'bar')), data_prefix=dict(img='images/valid/'))\n"
        f'val_dataloader = dict({QUIET}, dataset=dict(**annotated, ann_file="annotations/valid.json"))\n'
        'resize = dict(scale=(128, 128))',
        r'coco/bbox_mAP: (-?[\d.]+)',
    ),
    'mmseg': (
        'segmentation/upernet_vit-tiny_folder.py',
        f'model = dict({VIT}, out_indices=(0, 1, 2, 3), window_size=0, global_blocks=()), neck=dict(embed_dim=32),\n'
        '    decode_head=dict(in_channels=[32] * 4, channels=32), auxiliary_head=dict(in_channels=32, channels=16))\n'
        f'val_dataloader = dict({QUIET})',
        r'mIoU: ([\d.]+)',
    ),
}
MASK_RCNN = (
    f'model = dict({VIT}, window_size=4, global_blocks=(1,)), neck=dict(in_channels=32))\n'
    f'resize = dict(scale=(128, 128))\nval_dataloader = dict({QUIET})\ntest_dataloader = val_dataloader\n'
)


def save_random(cfg, path):
    """A checkpoint of random weights of a config's model."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if cfg.default_scope != 'mmdet':  # whose boxes would be empty
        random_weights(model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)


@pytest.mark.parametrize('framework', LEAVES)
def test_both_tools_agree(tmp_path, framework):
    """The frameworks' test tools merge the predictions of the same views."""
    if framework == 'mmdet':
        pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")
    base, text, pattern = LEAVES[framework]
    if framework == 'mmpretrain':
        make_labelled(tmp_path / 'data', dict(a=2, b=2), dict(a=5, b=6), side=64)
    else:
        make_dense(tmp_path / 'data', dict(train=2, valid=3))
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        f'_base_ = {str(ROOT / "configs" / base)!r}\ndata_root = {str(tmp_path / "data")!r}\n{text}\n'
        'test_dataloader = val_dataloader\n'
    )
    package = import_module(framework)
    if framework != 'mmpretrain':
        import_module(f'{framework}.utils').register_all_modules(init_default_scope=True)
    save_random(load_config(str(leaf)), tmp_path / 'model.pth')
    arguments = [leaf, tmp_path / 'model.pth', '--work-dir', tmp_path / 'work', '--tta']
    ours = run(sys.executable, ROOT / 'tools/test.py', *arguments, cwd=tmp_path)
    theirs = Path(package.__file__).parent / '.mim/tools/test.py'
    log = run(sys.executable, theirs, *arguments, cwd=tmp_path)
    (found,) = re.findall(f'^{pattern}', ours, re.MULTILINE)
    assert float(found) == pytest.approx(float(re.findall(pattern, log)[-1]), abs=0.01)


def test_boxes_of_a_mask_rcnn_are_evaluated(tmp_path):
    """MMDetection's own tool refuses models with masks."""
    pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")
    make_dense(tmp_path / 'data', dict(train=2, valid=3))
    base = ROOT / 'configs/detection/mask-rcnn_vit-tiny_folder.py'
    (tmp_path / 'leaf.py').write_text(f'_base_ = {str(base)!r}\ndata_root = {str(tmp_path / "data")!r}\n{MASK_RCNN}')
    save_random(load_config(str(tmp_path / 'leaf.py')), tmp_path / 'model.pth')
    arguments = [tmp_path / 'leaf.py', tmp_path / 'model.pth', '--work-dir', tmp_path / 'work', '--tta']
    printed = run(sys.executable, ROOT / 'tools/test.py', *arguments, cwd=tmp_path)
    assert 'segm: not evaluated' in printed and 'coco/bbox_mAP: ' in printed and 'segm_mAP' not in printed


def test_the_label_hook_knows_tta_and_cascades_and_leaves_others_alone():
    class TTA(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    class Model(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.decode_head = head

        def test_step(self, data):
            return data

    def head(classes):
        module = nn.Identity()
        module.num_classes, module.ignore_index = classes, 255
        return module

    sample = BaseDataElement(metainfo=dict(seg_map_path='mask.png'))
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(np.full((1, 4, 4), 3)))
    cascade = nn.ModuleList([head(7), head(3)])
    for model, samples in (
        (Model(head(3)), [sample]),
        (Model(cascade), [sample]),
        (TTA(module=Model(cascade)), [[sample], [sample]]),
    ):
        with pytest.raises(ValueError, match=r'mask.png has the value 3, but decode_head.num_classes=3 means 0 ... 2'):
            SegLabelHook()._before_iter(SimpleNamespace(model=model), 0, dict(data_samples=samples))
    for model in (Model(head(4)), Model(nn.Identity()), nn.Identity(), Model(nn.ModuleList([head(2), head(4)]))):
        SegLabelHook()._before_iter(SimpleNamespace(model=model), 0, dict(data_samples=[sample]))
