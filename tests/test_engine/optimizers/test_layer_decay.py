"""Layer decay by one constructor for models of MMPretrain, MMDetection, MMSegmentation and bare ones."""

import json

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from helpers.models import TINY
from helpers.paths import DATA, ROOT
from helpers.rates import rates
from simmim_plugin import SimMIM, SimMIMOptimWrapperConstructor, SimMIMViT
from simmim_plugin.config import load_config
from simmim_plugin.engine.optimizers.layer_decay_constructor import has_decay

WRAPPER = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05))
FINE = {**TINY, 'use_shared_rel_pos_bias': False, 'use_rel_pos_bias': True}


def scales(model: nn.Module, rate: float = 0.65) -> dict[str, tuple[float, float]]:
    """Name -> learning rate and weight decay that its parameter gets."""
    wrapper = SimMIMOptimWrapperConstructor(WRAPPER, dict(layer_decay_rate=rate))(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (g['lr'], g['weight_decay']) for g in wrapper.optimizer.param_groups for p in g['params']}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


def check(found: dict[str, tuple[float, float]], prefix: str, model: nn.Module) -> None:
    """Layer ids of the published recipe: 3 blocks, so 5 layers: 0 before the blocks, 1 ... 3, 4 the rest."""
    parameters = dict(model.named_parameters())
    for name, (rate, decay) in found.items():
        bare = name.removeprefix(prefix)
        if name.startswith(prefix) and bare.startswith('blocks.'):
            layer = 1 + int(bare.split('.')[1])
        else:
            layer = 0 if name.startswith(prefix) and bare.startswith(('patch', 'cls', 'mask', 'pos')) else 4
        assert rate == pytest.approx(0.65 ** (4 - layer)), name
        assert decay == (0.05 if has_decay(name, parameters[name]) else 0.0), name


def test_bare_backbone_and_any_model_around_it():
    backbone = SimMIMViT(**{k: v for k, v in FINE.items() if k != 'type'}, use_abs_pos_embed=True)
    check(scales(backbone), '', backbone)
    model = nn.ModuleDict(dict(encoder=backbone, head=nn.Linear(48, 2)))
    check(scales(model), 'encoder.', model)
    assert len({rate for rate, _ in scales(model).values()}) == 5
    wrapper = SimMIMOptimWrapperConstructor(WRAPPER, dict(layer_decay_rate=0.65))(model)
    assert len(wrapper.optimizer.param_groups) <= 10  # by layer and decay, not one per parameter


def test_the_new_parts_of_a_continued_pretraining_have_the_full_rate():
    model = SimMIM(backbone=dict(TINY))
    found = scales(model)
    new = [name for name, (rate, _) in found.items() if rate == 1.0]
    tables = [name for name in found if name.startswith('backbone.rel_pos_bias.')]
    norm = ['backbone.norm.weight', 'backbone.norm.bias']
    assert sorted(new) == sorted(['backbone.mask_token', 'head.decoder.weight', 'head.decoder.bias', *tables, *norm])
    assert found['backbone.cls_token'][0] == found['backbone.patch_embed.proj.weight'][0] == pytest.approx(0.65**4)


def test_mmpretrain_classifier():
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', num_classes=5, in_channels=48)
    model = MODELS.build(
        dict(_scope_='mmpretrain', type='ImageClassifier', backbone={**FINE, 'out_type': 'avg_featmap'}, head=head)
    )
    found = scales(model)
    check(found, 'backbone.', model)
    assert found['head.fc.weight'][0] == found['backbone.fc_norm.weight'][0] == 1.0


def test_mmsegmentation_segmentor():
    pytest.importorskip('mmseg')
    head = dict(type='FCNHead', in_channels=48, channels=16, num_classes=4, num_convs=1, concat_input=False,
                norm_cfg=dict(type='BN'), in_index=0)  # fmt: skip
    model = MODELS.build(dict(_scope_='mmseg', type='EncoderDecoder', backbone=FINE, decode_head=head))
    check(scales(model), 'backbone.', model)


def test_mmdetection_detector():
    pytest.importorskip('mmcv.ops', reason="MMCV's operators are not compiled here")
    head = dict(type='FCOSHead', num_classes=3, in_channels=48, feat_channels=32, stacked_convs=1, strides=[16])
    model = MODELS.build(
        dict(_scope_='mmdet', type='FCOS', backbone=FINE, bbox_head=head,
             neck=dict(type='FPN', in_channels=[48], out_channels=48, num_outs=1))
    )  # fmt: skip
    check(scales(model), 'backbone.', model)


def test_the_recipe_by_layer_and_iteration():
    """The config's own optimiser, groups and schedule, for ViT-B, at the reference's total batch and epoch length."""
    reference = json.loads((DATA / 'schedules.json').read_text())['finetune']
    cfg = load_config(str(ROOT / 'configs/finetune/vit-b_in1k.py'))
    assert cfg.auto_scale_lr.base_batch_size == reference['total_batch']
    assert cfg.train_cfg.max_epochs == reference['epochs']
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=MODELS.build(cfg.model.backbone), head=nn.Linear(768, 1000)))
    wrapper_cfg = dict(cfg.optim_wrapper)
    assert wrapper_cfg.pop('constructor') == 'simmim_plugin.SimMIMOptimWrapperConstructor'
    constructor = SimMIMOptimWrapperConstructor(
        {**wrapper_cfg, 'type': 'OptimWrapper'}, wrapper_cfg.pop('paramwise_cfg')
    )
    constructor.optim_wrapper_cfg.pop('paramwise_cfg')
    wrapper = constructor(model)
    groups = wrapper.optimizer.param_groups
    seen = rates(cfg.param_scheduler, wrapper, reference['iters_per_epoch'], reference['epochs'])
    assert {group['layer_id'] for group in groups} == set(range(14))
    listed = [
        (i, str(g['layer_id'])) for i, g in enumerate(groups) if str(g['layer_id']) in reference['lr_by_layer_id']
    ]
    assert len(listed) >= len(reference['lr_by_layer_id']) >= 5
    for column, layer in listed:
        for iteration, rate in reference['lr_by_layer_id'][layer].items():
            assert seen[int(iteration)][column] == pytest.approx(rate, rel=1e-12, abs=0), (layer, iteration)


def test_wrong_arguments_are_named():
    for given in (dict(layer_decay_rate=0.5, norm_decay_mult=0), 0.65, ['layer_decay_rate']):
        with pytest.raises(ValueError) as raised:
            SimMIMOptimWrapperConstructor(WRAPPER, given)
        assert str(raised.value) == (
            f'paramwise_cfg={given} must be a dict of layer_decay_rate (optional), no_decay (optional); '
            "for MMEngine's other options set optim_wrapper.constructor='DefaultOptimWrapperConstructor'"
        )
    for rate in (1.5, 0, float('nan'), None):
        words = rf'^layer_decay_rate={rate} must be a number in \(0, 1\]; the published value is 0.65$'
        with pytest.raises(ValueError, match=words):
            SimMIMOptimWrapperConstructor(WRAPPER, dict(layer_decay_rate=rate))
    with pytest.raises(ValueError, match='no part of Linear has get_layer_depth'):
        SimMIMOptimWrapperConstructor(WRAPPER, dict(layer_decay_rate=0.65))(nn.Linear(2, 2))
