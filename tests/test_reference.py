"""Same numbers as the reference implementation (tests/data, computed with it in float32), to 1e-5."""

import json

import numpy as np
import torch
import torch.nn.functional as F
from conftest import DATA, ROOT, TINY, assert_close, our_name
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from torch import nn

from simmim_plugin import LinearWarmupLR, SimMIMOptimWrapperConstructor, SimMIMViT
from simmim_plugin.launch import load_config
from simmim_plugin.optim import has_decay


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
    optimizer = dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    wrapper = SimMIMOptimWrapperConstructor(dict(type='OptimWrapper', optimizer=optimizer))(reference_model)
    losses, norms = [], []
    for _ in range(5):
        loss = reference_model(image, mask=mask, mode='loss')['loss']
        wrapper.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(reference_model.parameters(), 5.0).item())
        wrapper.step()
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
    init_default_scope('simmim_plugin')
    reference = json.loads((DATA / 'schedules.json').read_text())['pretrain']
    cfg = load_config(str(ROOT / 'configs/simmim_vit-b.py'))
    assert cfg.auto_scale_lr.base_batch_size == reference['total_batch']
    assert cfg.train_cfg.max_epochs == reference['epochs']
    weight = nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.SGD([weight], lr=cfg.optim_wrapper.optimizer.lr))
    length = reference['iters_per_epoch']
    schedulers = [
        PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=wrapper, epoch_length=length))
        for scheduler in cfg.param_scheduler
    ]
    assert isinstance(schedulers[0], LinearWarmupLR)
    seen = {}
    for iteration in range(length * reference['epochs']):
        seen[iteration] = wrapper.get_lr()['lr'][0]
        for scheduler in schedulers:
            if not scheduler.by_epoch or (iteration + 1) % length == 0:
                scheduler.step()
    for iteration, rate in reference['lr'].items():
        assert np.isclose(seen[int(iteration)], rate, rtol=1e-9), iteration
