"""Same numbers as the reference implementation (tests/data, computed with it in float32), to 1e-5."""

import json

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from torch import nn

from helpers.models import TINY, assert_close, our_name
from helpers.paths import DATA, ROOT
from helpers.rates import rates
from simmim_plugin import SimMIMOptimWrapperConstructor, SimMIMViT, WarmupCosineLR
from simmim_plugin.config import load_config
from simmim_plugin.engine.optimizers.layer_decay_constructor import has_decay

pytestmark = pytest.mark.core


def test_loss_reconstruction_and_features(reference_model, pretrain_reference):
    image = torch.from_numpy(pretrain_reference['image'])
    mask = torch.from_numpy(pretrain_reference['mask'])
    assert_close(reference_model(image, mask=mask, mode='loss')['loss'], pretrain_reference['loss'])
    assert_close(reference_model.reconstruct(image, mask), pretrain_reference['reconstruction'])
    assert_close(reference_model.backbone(image, mask)[0], pretrain_reference['features'])
    assert_close(reference_model.backbone(image)[0], pretrain_reference['features_unmasked'])
    assert_close(reference_model(image, mode='tensor')[0], pretrain_reference['features_unmasked'])


def test_every_gradient(reference_model, pretrain_reference):
    image = torch.from_numpy(pretrain_reference['image'])
    mask = torch.from_numpy(pretrain_reference['mask'])
    reference_model(image, mask=mask, mode='loss')['loss'].backward()
    expected = {our_name(k[5:]): v for k, v in pretrain_reference.items() if k.startswith('grad/')}
    parameters = dict(reference_model.named_parameters())
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        assert_close(parameter.grad, expected[name])


def test_five_steps_of_training(reference_model, pretrain_reference):
    image = torch.from_numpy(pretrain_reference['image'])
    mask = torch.from_numpy(pretrain_reference['mask'])
    # The recipe's own optimiser, clipping and groups; only the rate and autocast are the reference run's.
    wrapper_cfg = load_config(str(ROOT / 'configs/simmim_vit-b.py')).optim_wrapper
    assert wrapper_cfg.pop('constructor') == 'SimMIMOptimWrapperConstructor'
    wrapper_cfg.optimizer.lr = 1e-3
    wrapper = SimMIMOptimWrapperConstructor({**wrapper_cfg, 'type': 'OptimWrapper'})(reference_model)
    losses, norms = [], []
    for _ in range(5):
        loss = reference_model(image, mask=mask, mode='loss')['loss']
        wrapper.update_params(loss)
        norms.append(wrapper.message_hub.get_scalar('train/grad_norm').current())
        losses.append(loss.item())
    assert_close(torch.tensor(losses), pretrain_reference['trace/loss'])
    assert_close(torch.tensor(norms), pretrain_reference['trace/grad_norm'])
    parameters = dict(reference_model.named_parameters())
    for key, expected in pretrain_reference.items():
        if key.startswith('trace/final/'):
            assert_close(parameters[our_name(key[12:])], expected)


def test_no_decay_set(reference_model, pretrain_reference):
    ours = {name for name, p in reference_model.named_parameters() if not has_decay(name, p)}
    assert ours == {our_name(str(name)) for name in pretrain_reference['no_decay']}


def test_finetuning_logits_and_gradients(finetune_reference):
    backbone = SimMIMViT(
        **{k: v for k, v in TINY.items() if k != 'type'},
        use_shared_rel_pos_bias=False,
        use_rel_pos_bias=True,
        out_type='avg_featmap',
    ).eval()
    head = nn.Linear(48, 5)
    state = {k[6:]: torch.from_numpy(v) for k, v in finetune_reference.items() if k.startswith('state/')}
    head.load_state_dict({k[5:]: state.pop(k) for k in ('head.weight', 'head.bias')})
    missing, unexpected = backbone.load_state_dict(state, strict=False)
    assert missing == ['mask_token'] and not unexpected

    (pooled,) = backbone(torch.from_numpy(finetune_reference['image']))
    logits = head(pooled)
    loss = F.cross_entropy(logits, torch.tensor([0, 1, 2]))
    loss.backward()
    assert_close(pooled, finetune_reference['pooled'])
    assert_close(logits, finetune_reference['logits'])
    assert_close(loss, finetune_reference['loss'])
    gradients = {name: p.grad for name, p in backbone.named_parameters() if name != 'mask_token'}
    gradients |= {f'head.{name}': p.grad for name, p in head.named_parameters()}
    expected = {k[5:]: v for k, v in finetune_reference.items() if k.startswith('grad/')}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name])


def test_pretraining_schedule():
    """The config's own schedulers, at the total batch and iterations per epoch of the reference's list."""
    reference = json.loads((DATA / 'schedules.json').read_text())['pretrain']
    cfg = load_config(str(ROOT / 'configs/simmim_vit-b.py'))
    assert cfg.auto_scale_lr.base_batch_size == reference['total_batch']
    assert cfg.train_cfg.max_epochs == reference['epochs']
    wrapper = OptimWrapper(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr))
    seen = rates(cfg.param_scheduler, wrapper, reference['iters_per_epoch'], reference['epochs'])
    for iteration, rate in reference['lr'].items():
        assert seen[int(iteration)][0] == pytest.approx(rate, rel=1e-12, abs=0), iteration


def test_finetuning_schedule():
    """Layer decay 0.65 of 5e-3 (batch 2048), warm-up of 20 epochs from the floor, a cosine that is not shifted."""
    reference = json.loads((DATA / 'schedules.json').read_text())['finetune']
    by_layer = reference['lr_by_layer_id']
    groups = [dict(params=[nn.Parameter(torch.zeros(1))], lr=5e-3 * 0.65 ** (13 - int(layer))) for layer in by_layer]
    wrapper = OptimWrapper(torch.optim.SGD(groups, lr=5e-3))
    schedule = dict(type='WarmupCosineLR', warmup=20, end=100, floor_ratio=2e-4, convert_to_iter_based=True)
    seen = rates([schedule], wrapper, reference['iters_per_epoch'], reference['epochs'])
    for group, (layer, expected) in enumerate(by_layer.items()):
        for iteration, rate in expected.items():
            assert seen[int(iteration)][group] == pytest.approx(rate, rel=1e-12, abs=0), (layer, iteration)
    with pytest.raises(
        ValueError, match=r'WarmupCosineLR.warmup=3 must be a number in \[0, 2\]; it is a part of the schedule'
    ):
        WarmupCosineLR(wrapper, 3, 2)


def test_the_recipe_has_the_published_numbers():
    """What the reference arrays cannot show; values of arXiv 2111.09886."""
    cfg = load_config(str(ROOT / 'configs/simmim_vit-b.py'))
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.img_size, backbone.patch_size) == ('base', 224, 16)
    assert (backbone.drop_path_rate, backbone.layer_scale_init_value) == (0.1, 0.1)
    assert backbone.use_shared_rel_pos_bias and not backbone.get('use_abs_pos_embed', False)
    crop, flip, mask = cfg.train_pipeline[1:4]
    assert (crop.size, crop.scale, crop.interpolation) == (224, (0.67, 1.0), 'bilinear')
    assert crop.ratio == pytest.approx((3 / 4, 4 / 3)) and flip.type.endswith('RandomHorizontalFlip')
    assert (mask.mask_ratio, mask.mask_patch_size, mask.model_patch_size) == (0.6, 32, 16)
    optimizer = dict(cfg.optim_wrapper.optimizer)
    assert optimizer.pop('fused')  # the same numbers, see above
    assert optimizer == dict(type='AdamW', lr=4e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 2048
    imagenet = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    assert (tuple(cfg.model.data_preprocessor.mean), tuple(cfg.model.data_preprocessor['std'])) == imagenet
