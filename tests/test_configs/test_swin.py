"""A pretrained Swin in MMDetection: our config at a tiny size, and MMDetection's own Swin."""

import copy
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from helpers.dense import config
from helpers.other_projects import randomise
from helpers.paths import ROOT
from helpers.swin import PRETRAIN
from simmim_plugin import SimMIM, SimMIMOptimWrapperConstructor
from simmim_plugin.checkpoints.loading import fit_checkpoint
from simmim_plugin.config import load_config

pytest.importorskip('mmpretrain')
pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators", exc_type=ImportError)
ARCH = dict(embed_dims=8, depths=[2, 2, 2, 1], num_heads=[1, 2, 2, 4])


@pytest.fixture(scope='module')
def pretrained() -> SimMIM:
    settings = {**copy.deepcopy(PRETRAIN), 'arch': ARCH, 'img_size': 64, 'out_indices': (3,)}
    settings['stage_cfgs'] = dict(block_cfgs=dict(window_size=2))
    return randomise(SimMIM(settings, dict(in_channels=64, patch_size=32, out_channels=3)))


def built(cfg: Config, pretrained: SimMIM) -> torch.nn.Module:
    """The detector with the weights of a pretraining."""
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    cfg.model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    cfg.model.train_cfg.rcnn.sampler.num = 16
    cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    model = MODELS.build(cfg.model)
    checkpoint = {'state_dict': dict(pretrained.state_dict())}
    fitted = fit_checkpoint(model, checkpoint)
    assert fitted is not None and len(fitted.resized) == 7 and 'windows of 2 -> 7' in fitted.resized[0]
    assert {name for name in fitted.kept if name.startswith('backbone.')} == {
        f'backbone.norm{i}.{kind}' for i in range(3) for kind in ('weight', 'bias')
    }
    model.load_state_dict(checkpoint['state_dict'])
    for name, value in pretrained.backbone.state_dict().items():
        if name != 'mask_token' and 'relative_position' not in name:
            assert torch.equal(model.state_dict()[f'backbone.{name}'], value), name
    return model


def step(model: torch.nn.Module) -> None:
    """Losses, gradients and predictions of a batch of images of different sizes."""
    from mmdet.testing import demo_mm_inputs

    batch = demo_mm_inputs(2, [[3, 96, 128], [3, 90, 70]], num_items=[3, 2], num_classes=80, with_mask=True)
    for sample in batch['data_samples']:
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.float()
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    total = sum(
        part.sum()
        for name, value in losses.items()
        if 'loss' in name
        for part in (value if isinstance(value, list) else [value])
    )
    total.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or p.grad.isnan().any())]
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(batch, False), mode='predict')
    assert found[0].pred_instances.bboxes.shape[1] == 4


def test_our_detection_config_at_a_tiny_size(pretrained):
    cfg = load_config(config('detection/mask-rcnn_swin-b_coco.py'))
    cfg.model.backbone.arch = ARCH
    model = built(cfg, pretrained)
    wrapper_cfg = dict(cfg.optim_wrapper)
    paramwise = dict(wrapper_cfg.pop('paramwise_cfg'))
    wrapper_cfg.pop('constructor')
    wrapper = SimMIMOptimWrapperConstructor(wrapper_cfg, paramwise)(model)
    lowest = min(wrapper.optimizer.param_groups, key=lambda group: group['lr'])
    assert lowest['lr_scale'] == pytest.approx(0.8**8)  # 7 blocks, the embedding and the rest
    step(model)


def test_mmdetections_own_swin_takes_the_weights_in_the_config_of_the_guide(pretrained, tmp_path):
    (block,) = re.findall(r'```python\n(_base_ = .+?)```', (ROOT / 'docs/backbones.md').read_text('utf-8'), re.DOTALL)
    (tmp_path / 'guide.py').write_text(block)
    cfg = load_config(str(tmp_path / 'guide.py'))
    assert cfg.default_hooks.checkpoint.type == 'simmim_plugin.SimMIMCheckpointHook'
    assert cfg.model.backbone.embed_dims == 128 and cfg.model.backbone.depths == [2, 2, 18, 2]
    cfg.model.backbone.update(embed_dims=8, depths=ARCH['depths'], num_heads=ARCH['num_heads'])
    step(built(cfg, pretrained))
