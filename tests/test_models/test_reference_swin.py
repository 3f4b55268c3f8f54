"""Swin: same numbers as the reference implementation (tests/data/simmim_swin.npz, computed with it), to 1e-5."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from torch import nn

from helpers.models import assert_close
from helpers.other_projects import mmpretrain_model
from helpers.paths import DATA, ROOT
from helpers.rates import rates
from helpers.swin import HEAD, PRETRAIN
from simmim_plugin import SimMIM, SimMIMOptimWrapperConstructor
from simmim_plugin.checkpoints.loading import fit_checkpoint
from simmim_plugin.checkpoints.swin import to_ours
from simmim_plugin.config import load_config
from simmim_plugin.registry import build_part

pytest.importorskip('mmpretrain')
pytestmark = pytest.mark.core


@pytest.fixture(scope='module')
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / 'simmim_swin.npz'))


def state_of(reference, group):
    return {k[len(group) :]: torch.from_numpy(v).float() for k, v in reference.items() if k.startswith(group)}


@pytest.fixture
def model(reference) -> SimMIM:
    """SimMIM with the reference's weights."""
    built = SimMIM(copy.deepcopy(PRETRAIN), dict(HEAD)).eval()
    state, left_out = to_ours(state_of(reference, 'state/'))
    missing, unexpected = built.load_state_dict(state, strict=False)
    assert not left_out and not unexpected and all(name.endswith('relative_position_index') for name in missing)
    return built


def translated(names):
    """The reference's names -> ours, by tensors that carry a number."""
    state, _ = to_ours({name: torch.full((1, 4), i) for i, name in enumerate(names)})
    return {names[int(value.flatten()[0])]: name for name, value in state.items()}


def inputs(reference):
    return torch.from_numpy(reference['image']).float(), torch.from_numpy(reference['mask'])


def test_loss_reconstruction_and_features(model, reference):
    image, mask = inputs(reference)
    assert_close(model(image, mask=mask, mode='loss')['loss'], reference['loss'])
    assert_close(model.reconstruct(image, mask)[:1], reference['reconstruction'])
    assert_close(model.backbone(image, mask)[0], reference['features'])
    assert_close(model(image)[0], reference['features_unmasked'])


def test_every_gradient(model, reference):
    image, mask = inputs(reference)
    model(image, mask=mask, mode='loss')['loss'].backward()
    expected, _ = to_ours(state_of(reference, 'grad/'))  # of the same shapes and order as the weights
    parameters = dict(model.named_parameters())
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        assert_close(parameter.grad, expected[name].numpy())


def test_five_steps_of_training_with_the_recipe_of_the_config(model, reference):
    image, mask = inputs(reference)
    wrapper_cfg = load_config(str(ROOT / 'configs/simmim_swin-b_192px.py')).optim_wrapper
    wrapper_cfg.pop('constructor')
    wrapper_cfg.optimizer.lr = 1e-3
    paramwise = dict(wrapper_cfg.pop('paramwise_cfg'))
    wrapper = SimMIMOptimWrapperConstructor({**wrapper_cfg, 'type': 'OptimWrapper'}, paramwise)(model)
    ours_of = translated([name[6:] for name in reference if name.startswith('state/')])
    plain = {id(p) for group in wrapper.optimizer.param_groups if group['weight_decay'] == 0 for p in group['params']}
    ours = {name for name, p in model.named_parameters() if id(p) in plain}
    assert ours == {ours_of[str(name)] for name in reference['no_decay']}
    losses, norms = [], []
    for _ in range(5):
        loss = model(image, mask=mask, mode='loss')['loss']
        wrapper.update_params(loss)
        norms.append(wrapper.message_hub.get_scalar('train/grad_norm').current())
        losses.append(loss.item())
    assert_close(torch.tensor(losses), reference['trace/loss'])
    assert_close(torch.tensor(norms), reference['trace/grad_norm'])
    parameters = dict(model.named_parameters())
    for name in ('mask_token', 'norm.weight', 'layers.0.blocks.1.attn.relative_position_bias_table'):
        found = parameters[ours_of[f'encoder.{name}']]
        assert_close(found, reference[f'trace/final/encoder.{name}'])


@pytest.fixture
def classifier(reference) -> nn.Module:
    """The classifier of the fine-tuning config, with another window and size, and the pretrained weights."""
    cfg = load_config(str(ROOT / 'configs/finetune/swin-b_in1k.py')).model
    cfg.backbone.update(img_size=64, window_size=4, drop_path_rate=0.0, out_indices=(2,), arch=PRETRAIN['arch'])
    cfg.head.update(num_classes=5, in_channels=16)
    cfg.pop('train_cfg')
    built = mmpretrain_model(cfg).eval()
    checkpoint = {'model': state_of(reference, 'state/')}
    fitted = fit_checkpoint(built, checkpoint)
    assert len(fitted.resized) == 6 and 'windows of 3 -> 4' in fitted.resized[0]
    assert sorted(fitted.kept) == ['head.fc.bias', 'head.fc.weight']
    assert sorted(fitted.skipped) == ['backbone.mask_token', 'head.decoder.bias', 'head.decoder.weight']
    assert len(fitted.report('x').splitlines()) == 3
    built.load_state_dict(checkpoint['state_dict'])
    head = {kind: torch.from_numpy(reference[f'finetune/head.{kind}']) for kind in ('weight', 'bias')}
    built.head.fc.load_state_dict(head)
    return built


def test_finetuning_from_it_with_resized_tables(classifier, reference):
    image, _ = inputs(reference)
    image = F.pad(image, (8, 8, 8, 8), mode='reflect')
    with torch.no_grad():
        assert_close(classifier.extract_feat(image)[-1], reference['finetune/pooled'])
        assert_close(classifier(image), reference['finetune/logits'])
    table = classifier.backbone.stages[2].blocks[1].attn.w_msa.relative_position_bias_table
    assert_close(table, reference['finetune/table'])


def test_layer_decay_and_weight_decay_of_finetuning(classifier, reference):
    wrapper_cfg = load_config(str(ROOT / 'configs/finetune/swin-b_in1k.py')).optim_wrapper
    wrapper_cfg.pop('constructor')
    paramwise = dict(wrapper_cfg.pop('paramwise_cfg'))
    assert paramwise['layer_decay_rate'] == 0.8
    wrapper = SimMIMOptimWrapperConstructor({**wrapper_cfg, 'type': 'OptimWrapper'}, paramwise)(classifier)
    names = {id(p): name for name, p in classifier.named_parameters()}
    found = {
        names[id(p)]: (group['lr_scale'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    ours_of = translated([str(name) for name in reference['finetune/names']])
    assert found.keys() == set(ours_of.values())
    for name, scale, decay in zip(*(reference[f'finetune/{key}'] for key in ('names', 'lr_scale', 'weight_decay'))):
        assert found[ours_of[str(name)]] == (pytest.approx(scale), decay), name


@pytest.mark.parametrize(
    ('config', 'name'),
    [
        ('simmim_swin-b_192px', 'schedule_800e'),
        ('simmim_swin-b_192px_100e', 'schedule_100e'),
        ('finetune/swin-b_in1k', 'schedule_finetune'),
    ],
)
def test_schedules(reference, config, name):
    cfg = load_config(str(ROOT / f'configs/{config}.py'))
    assert cfg.auto_scale_lr.base_batch_size == 2048 == 8 * cfg.train_dataloader.batch_size
    wrapper = OptimWrapper(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr))
    seen = rates(cfg.param_scheduler, wrapper, 10, cfg.train_cfg.max_epochs)
    for iteration, rate in reference[name]:
        assert seen[int(iteration)][0] == pytest.approx(rate, rel=1e-9, abs=0), iteration


def test_the_recipe_has_the_published_numbers():
    """What the reference arrays cannot show; values of the reference's configs for Swin-B."""
    cfg = load_config(str(ROOT / 'configs/simmim_swin-b_192px.py'))
    backbone = build_part(cfg.model.backbone)
    assert (backbone.embed_dims, backbone.depths, backbone.num_heads) == (128, [2, 2, 18, 2], [4, 8, 16, 32])
    assert {block.attn.w_msa.window_size for stage in backbone.stages for block in stage.blocks} == {(6, 6)}
    assert backbone.patch_embed.projection.kernel_size == (4, 4) and cfg.model.backbone.drop_path_rate == 0
    crop, _, mask = cfg.train_pipeline[1:4]
    assert (crop.size, mask.mask_ratio, mask.mask_patch_size, mask.model_patch_size) == (192, 0.6, 32, 4)
    fine = load_config(str(ROOT / 'configs/finetune/swin-b_in1k.py')).model.backbone
    assert (fine.img_size, fine.window_size, fine.drop_path_rate) == (224, 7, 0.1)
