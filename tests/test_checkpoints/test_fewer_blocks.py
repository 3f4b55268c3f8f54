"""Checkpoints of a pretraining without the last blocks, in the networks that have them."""

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from helpers.models import TINY
from helpers.runners import runner
from simmim_plugin import SimMIM, SimMIMCheckpointHook, SimMIMOptimWrapperConstructor, SimMIMViT
from simmim_plugin.checkpoints.loading import PretrainedViT, fit_checkpoint
from simmim_plugin.checkpoints.state_dicts import from_plugin
from simmim_plugin.models.fit import Asked, fit_state

FINE = dict(use_shared_rel_pos_bias=False, use_rel_pos_bias=True, out_type='avg_featmap')
TABLE = 'relative_position_bias_table'
# The tensors of a block, counted by hand: two norms, two LayerScales, four linear layers; queries and values have a
# bias, keys none.
BLOCK = [
    'gamma_1', 'gamma_2', 'norm1.weight', 'norm1.bias', 'attn.q_bias', 'attn.v_bias', 'attn.qkv.weight',
    'attn.proj.weight', 'attn.proj.bias', 'norm2.weight', 'norm2.bias', 'mlp.fc1.weight', 'mlp.fc1.bias',
    'mlp.fc2.weight', 'mlp.fc2.bias',
]  # fmt: skip
EMBEDDING = ['cls_token', 'mask_token', 'patch_embed.proj.weight', 'patch_embed.proj.bias']


def arch(blocks: int) -> dict:
    return dict(arch={**TINY['arch'], 'num_layers': blocks})


def vit(blocks: int, **changes) -> SimMIMViT:
    torch.manual_seed(1)
    return SimMIMViT(**{**{k: v for k, v in TINY.items() if k != 'type'}, **arch(blocks), **FINE, **changes})


@pytest.fixture
def pretrained():
    """A pretraining of 2 blocks, no weight of which is that of an initialisation."""
    torch.manual_seed(0)
    model = SimMIM(backbone={**TINY, **arch(2)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def save(model, path, blocks=2) -> str:
    note = dict(model=dict(type='SimMIM', backbone={**TINY, **arch(blocks)}), pipeline=[])
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': note}, path)
    return str(path)


def in_blocks(names, *blocks) -> list[str]:
    return [f'blocks.{i}.{name}' for i in blocks for name in names]


def check(loaded: SimMIMViT, fresh: SimMIMViT, theirs: SimMIMViT) -> None:
    """Blocks 0 and 1 are the pretraining's, with its shared table; blocks 2 and 3 as initialised, with theirs."""
    ours, start, state = loaded.state_dict(), fresh.state_dict(), theirs.state_dict()
    taken = [*EMBEDDING, *in_blocks(BLOCK, 0, 1)]
    tables = in_blocks([f'attn.{TABLE}'], 0, 1)
    new = [*in_blocks([*BLOCK, f'attn.{TABLE}'], 2, 3), 'fc_norm.weight', 'fc_norm.bias']
    assert sorted(ours) == sorted(taken + tables + new)
    assert all(torch.equal(ours[name], state[name]) for name in taken)
    assert all(torch.equal(ours[name], state[f'rel_pos_bias.{TABLE}']) for name in tables)
    assert all(torch.equal(ours[name], start[name]) for name in new)


def test_load_from_with_new_blocks(pretrained):
    ours, fresh = (nn.ModuleDict(dict(backbone=vit(4), head=nn.Linear(48, 2))) for _ in range(2))
    fresh.load_state_dict(ours.state_dict())
    checkpoint = {'state_dict': pretrained.state_dict()}
    fitted = fit_checkpoint(ours, checkpoint, Asked(new_blocks=2))
    expected = [*EMBEDDING, *in_blocks([*BLOCK, f'attn.{TABLE}'], 0, 1)]  # 4 + 2 x 16
    assert len(expected) == 36 and sorted(fitted.state) == sorted(f'backbone.{name}' for name in expected)
    new = [*in_blocks([*BLOCK, f'attn.{TABLE}'], 2, 3), 'fc_norm.weight', 'fc_norm.bias']
    assert sorted(fitted.kept) == sorted(['head.weight', 'head.bias', *(f'backbone.{name}' for name in new)])
    assert fitted.skipped == ['backbone.norm.weight', 'backbone.norm.bias', 'head.decoder.weight', 'head.decoder.bias']
    ours.load_state_dict(checkpoint['state_dict'])
    check(ours['backbone'], fresh['backbone'], pretrained.backbone)


def test_init_cfg_with_new_blocks_says_what_is_new(pretrained, tmp_path, capsys):
    MMLogger.get_instance('fewer_blocks')
    path = save(pretrained, tmp_path / 'a.pth')
    ours, fresh = vit(4, init_cfg=dict(type='Pretrained', checkpoint=path, new_blocks=2)), vit(4)
    fresh.load_state_dict(ours.state_dict())
    PretrainedViT(path, new_blocks=2)(ours)
    check(ours, fresh, pretrained.backbone)
    log = capsys.readouterr().out
    assert 'Loaded 36 tensors of' in log and 'new ones, as initialised: blocks.2.gamma_1' in log
    assert '... and 29 more' in log  # 2 x 16 + 2, of which 5 are named
    other = vit(4, init_cfg=dict(type='Pretrained', checkpoint=path, new_blocks=2))
    other.init_weights()
    assert torch.equal(other.blocks[1].mlp.fc1.weight, pretrained.backbone.blocks[1].mlp.fc1.weight)


def test_final_norm_and_tables_at_another_size_and_from_another_project(pretrained):
    """The norm of the checkpoint is that of its last block: it is not put behind the new ones."""
    for state in (pretrained.state_dict(), from_plugin(pretrained.state_dict(), 'mmpretrain').state):
        ours = nn.ModuleDict(dict(backbone=vit(3, out_type='featmap', img_size=96)))
        checkpoint = {'state_dict': dict(state)}
        fitted = fit_checkpoint(ours, checkpoint, Asked(new_blocks=1))
        ours.load_state_dict(checkpoint['state_dict'])
        assert (ours['backbone'].norm.weight == 1).all() and (ours['backbone'].norm.bias == 0).all()
        assert {'backbone.norm.weight', 'backbone.blocks.2.mlp.fc1.weight'} <= set(fitted.kept)
        assert [line.split()[1:] for line in fitted.resized] == [['4x4', '->', '6x6']] * 2
        loaded = ours.state_dict()
        assert not loaded[f'backbone.blocks.2.attn.{TABLE}'].any()
        assert torch.equal(loaded['backbone.blocks.1.norm1.weight'], pretrained.backbone.blocks[1].norm1.weight)


def test_nothing_is_new_unless_it_was_asked_for(pretrained, tmp_path):
    path = save(pretrained, tmp_path / 'a.pth')

    def load(blocks, **asked):
        PretrainedViT(path, **asked)(vit(blocks))

    match = (
        r'2 blocks and the model 4; set num_layers .*new_blocks=2 in init_cfg.*default_hooks.checkpoint.new_blocks=2'
    )
    with pytest.raises(ValueError, match=match):
        load(4)
    with pytest.raises(
        ValueError, match=r'new_blocks=1: the checkpoint has 2 blocks and the model 4; give new_blocks=2'
    ):
        load(4, new_blocks=1)
    with pytest.raises(
        ValueError, match=r'new_blocks=2: the checkpoint has 2 blocks and the model 2; leave new_blocks'
    ):
        load(2, new_blocks=2)
    with pytest.raises(
        ValueError, match=r'new_blocks=1: the checkpoint has 2 blocks and the model 1; leave new_blocks'
    ):
        load(1, new_blocks=1)
    with pytest.raises(ValueError, match=r'^init_cfg: new_blocks=-1 must be a whole number of at least 0'):
        load(4, new_blocks=-1)
    with pytest.raises(ValueError, match=r'^SimMIMCheckpointHook.new_blocks=True must be a whole number'):
        SimMIMCheckpointHook(new_blocks=True)
    half = {name: x for name, x in pretrained.state_dict().items() if name != 'backbone.blocks.1.mlp.fc1.weight'}
    with pytest.raises(ValueError, match=r'lacks blocks.1.mlp.fc1.weight, .* half a model is not loaded'):
        fit_checkpoint(nn.ModuleDict(dict(backbone=vit(4))), {'state_dict': half}, Asked(new_blocks=2))
    with pytest.raises(
        ValueError, match=r'new_blocks=4: the checkpoint has 0 blocks and the model 4; leave new_blocks'
    ):
        fit_state(vit(4), {'cls_token': torch.zeros(1, 1, 48)}, asked=Asked(new_blocks=4))
    other = nn.ModuleDict(dict(backbone=vit(4, layer_scale_init_value=0)))
    with pytest.raises(ValueError, match=r'the checkpoint has .*gamma_1.* set layer_scale_init_value'):
        fit_checkpoint(other, {'state_dict': pretrained.state_dict()}, Asked(new_blocks=2))
    convnext = dict(type='MaskedBackbone', model=dict(type='timm', name='test_convnext'), img_size=64)
    whole = SimMIM(backbone=convnext)
    with pytest.raises(
        ValueError, match=r'new_blocks=2 is for SimMIMViT, not for MaskedBackbone; leave new_blocks out'
    ):
        fit_checkpoint(whole, {'state_dict': whole.state_dict()}, Asked(new_blocks=2))


def test_layer_decay_by_the_place_of_a_block():
    """4 blocks, so 6 layers: block i of the network has 0.5 ** (4 - i) of the rate, whether it is new or not."""
    model = nn.ModuleDict(dict(backbone=vit(4), head=nn.Linear(48, 2)))
    wrapper = SimMIMOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=1.0)), dict(layer_decay_rate=0.5))(
        model
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    for i, rate in enumerate((0.0625, 0.125, 0.25, 0.5)):
        assert {found[f'backbone.{name}'] for name in in_blocks([*BLOCK, f'attn.{TABLE}'], i)} == {rate}
    assert found['backbone.cls_token'] == 0.03125 and found['head.weight'] == found['backbone.fc_norm.weight'] == 1


def test_a_training_begins_from_fewer_blocks_and_resumes(pretrained, tmp_path):
    """TINY has 3 blocks."""
    path = save(pretrained, tmp_path / 'a.pth')
    training = runner(tmp_path / 'run', 1, dict(new_blocks=1), load_from=path)
    training.load_or_resume()
    assert torch.equal(training.model.backbone.blocks[1].norm1.weight, pretrained.backbone.blocks[1].norm1.weight)
    training.train()
    again = runner(tmp_path / 'run', 2, dict(new_blocks=1), load_from=str(tmp_path / 'run/epoch_1.pth'), resume=True)
    again.train()
    assert again.epoch == 2
    with pytest.raises(ValueError, match='the checkpoint has 2 blocks and the model 3'):
        runner(tmp_path / 'other', 1, load_from=path).train()
