"""Loading pretrained weights: names, shared table, grids, reports and errors."""

from inspect import signature

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_state_dict
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models import adapt_input_conv
from timm.models.beit import Beit
from torch import nn

from helpers import interp2d
from helpers.models import TINY
from simmim_plugin import SimMIM, SimMIMViT
from simmim_plugin.checkpoints.loading import PretrainedViT, fit_checkpoint
from simmim_plugin.checkpoints.state_dicts import from_plugin
from simmim_plugin.models.fit import Asked, fit_state, grid_of_table
from simmim_plugin.models.layers.relative_position import TABLE, resize_table

pytestmark = pytest.mark.core

ARGUMENTS = {k: v for k, v in TINY.items() if k != 'type'}
FINE = dict(use_shared_rel_pos_bias=False, use_rel_pos_bias=True, out_type='avg_featmap')


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def save_pretraining(path, note=True, **changes) -> SimMIM:
    backbone = {**TINY, **changes}
    model = randomise(SimMIM(backbone=backbone))
    content = {'state_dict': model.state_dict()}
    if note:
        content['simmim_plugin'] = dict(model=dict(type='SimMIM', backbone=backbone), pipeline=[])
    torch.save(content, path)
    return model


def load_weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)['state_dict']


def initialised(path, prefix=None, **changes) -> SimMIMViT:
    init_cfg = dict(type='Pretrained', checkpoint=str(path), **({'prefix': prefix} if prefix else {}))
    model = SimMIMViT(**{**ARGUMENTS, **changes}, init_cfg=init_cfg)
    model.init_weights()
    return model


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_init_cfg_loads_a_pretraining_with_and_without_prefix(tmp_path, capsys, prefix):
    theirs = save_pretraining(tmp_path / 'a.pth')
    MMLogger.get_instance(f'pretrained{prefix}')  # print_log(..., 'current') goes there
    ours = initialised(tmp_path / 'a.pth', prefix, **FINE)
    shared = theirs.backbone.rel_pos_bias.relative_position_bias_table
    for name, value in ours.state_dict().items():
        if name.endswith('relative_position_bias_table'):
            assert torch.equal(value, shared)
        elif not name.startswith('fc_norm'):
            assert torch.equal(value, theirs.backbone.state_dict()[name]), name
    log = capsys.readouterr().out
    lines = [line for line in log[log.index('Loaded') :].splitlines() if line.strip()][:3]
    # 3 blocks of 16 tensors, the table among them; patch embedding (2), cls and mask token.
    assert 'Loaded 52 tensors of' in lines[0] and 'new ones, as initialised: fc_norm.weight, fc_norm.bias' in lines[0]
    assert lines[1] == 'Skipped, not in the model: norm.weight, norm.bias, head.decoder.weight, head.decoder.bias'
    assert lines[2] == 'Resized to the model: none'


@pytest.mark.parametrize('size', [96, (80, 96), (32, 48)])  # timm bends an axis that keeps its size, too
@pytest.mark.parametrize('kind', [{}, FINE])
def test_tables_are_resized_as_timm_does(tmp_path, monkeypatch, size, kind):
    interp2d.restore(monkeypatch)
    theirs = save_pretraining(tmp_path / 'a.pth', note=False)
    ours = initialised(tmp_path / 'a.pth', img_size=size, **kind)
    table = theirs.backbone.rel_pos_bias.relative_position_bias_table.detach()
    h, w = ours.grid
    expected = resize_rel_pos_bias_table(table, (h, w), ((2 * h - 1) * (2 * w - 1) + 3, 4))
    found = [v for name, v in ours.state_dict().items() if name.endswith('relative_position_bias_table')]
    assert len(found) == (3 if kind else 1)
    for value in found:
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    # The same pixels as the pretrained model at that size, which interpolates as it goes.
    x = torch.randn(1, 3, *ours.img_size)
    with torch.no_grad():
        maps = ours.eval()(x)[0] if not kind else None
        if maps is not None:
            torch.testing.assert_close(maps, theirs.backbone.eval()(x)[0], rtol=1e-4, atol=1e-5)


def test_grids_that_are_not_square(tmp_path):
    save_pretraining(tmp_path / 'noted.pth', img_size=(32, 96))  # 2 x 6 patches: 3 * 11 + 3 rows
    assert initialised(tmp_path / 'noted.pth', img_size=64).grid == (4, 4)
    save_pretraining(tmp_path / 'bare.pth', note=False, img_size=(32, 96))
    assert initialised(tmp_path / 'bare.pth', img_size=(64, 192)).grid == (4, 12)  # of the same proportions
    with pytest.raises(ValueError, match=r"bare.pth': rel_pos_bias.*has 36 rows, which no square grid of patches has"):
        initialised(tmp_path / 'bare.pth', img_size=64)
    content = torch.load(tmp_path / 'noted.pth', weights_only=True)
    content['simmim_plugin']['model']['backbone']['img_size'] = 96  # not what the weights are made for
    torch.save(content, tmp_path / 'wrong.pth')
    with pytest.raises(ValueError, match=r"wrong.pth': rel_pos_bias.*has 36 rows, which a grid of 6 x 6 patches does"):
        initialised(tmp_path / 'wrong.pth')
    assert grid_of_table(TABLE, torch.zeros(7 * 7 + 3, 4), like=(3, 5)) == (4, 4)
    assert grid_of_table(TABLE, torch.zeros(3 * 11 + 3, 4), like=(1, 3)) == (2, 6)
    assert grid_of_table('pos_embed', torch.zeros(1, 1 + 12, 48), like=(2, 6)) == (2, 6)


def test_a_position_embedding_is_resized(tmp_path):
    theirs = save_pretraining(tmp_path / 'a.pth', use_abs_pos_embed=True)
    ours = initialised(tmp_path / 'a.pth', img_size=96, use_abs_pos_embed=True).eval()
    assert ours.pos_embed.shape == (1, 37, 48)
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs.backbone.eval()(x)[0], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_project_is_recognised(tmp_path):
    beit = Beit(
        img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=4, init_values=0.1, num_classes=5,
        use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool='avg',
    )  # fmt: skip
    randomise(beit).eval()
    torch.save({'model': beit.state_dict()}, tmp_path / 'beit.pth')
    ours = initialised(tmp_path / 'beit.pth', **FINE).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], beit.forward_head(beit.forward_features(x), pre_logits=True),
                                   rtol=1e-5, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
def test_both_loaders_resize_inside_a_larger_model(loader):
    pretrained = randomise(SimMIM(backbone=TINY))
    model = nn.ModuleDict(dict(backbone=SimMIMViT(**{**ARGUMENTS, **FINE, 'img_size': 96}), head=nn.Linear(48, 2)))
    if loader == 'torch':
        model.load_state_dict(pretrained.state_dict(), strict=False)
    else:
        load_state_dict(model, pretrained.state_dict())
    state = model.state_dict()
    assert state['backbone.blocks.2.attn.relative_position_bias_table'].shape == (124, 4)
    assert torch.equal(state['backbone.cls_token'], pretrained.backbone.cls_token)
    assert state['backbone.blocks.0.attn.relative_position_bias_table'].abs().max() > 0.1


def test_a_plain_load_reports_that_the_shared_table_went_to_all_blocks(capsys):
    """Where nothing else is skipped or resized, as in a detector with MMEngine's own checkpoint hook."""
    MMLogger.get_instance('plain_load')
    pretrained = randomise(SimMIM(backbone=TINY)).backbone
    model = SimMIMViT(**ARGUMENTS, use_shared_rel_pos_bias=False, use_rel_pos_bias=True)
    model.load_state_dict(pretrained.state_dict())
    assert 'Loaded 54 tensors of a state dict\n' in capsys.readouterr().out
    model.load_state_dict(model.state_dict())  # its own: nothing to report
    assert 'Loaded' not in capsys.readouterr().out


def test_load_from_keeps_what_the_model_has(capsys):
    MMLogger.get_instance('load_from')
    pretrained = randomise(SimMIM(backbone=TINY))
    model = nn.ModuleDict(dict(backbone=SimMIMViT(**ARGUMENTS, **FINE), head=nn.Linear(48, 2)))
    checkpoint = {'state_dict': {**pretrained.state_dict(), 'head.weight': torch.ones(2, 48)}}
    bias = model['head'].bias.detach().clone()
    fit_checkpoint(model, checkpoint)
    model.load_state_dict(checkpoint['state_dict'], strict=True)  # MMEngine has nothing to warn of
    assert (model['head'].weight == 1).all() and torch.equal(model['head'].bias, bias)
    log = capsys.readouterr().out
    assert 'new ones, as initialised: backbone.fc_norm.weight, backbone.fc_norm.bias, head.bias\n' in log
    assert 'Skipped, not in the model: backbone.norm.weight, backbone.norm.bias, head.decoder' in log
    other = {'state_dict': {'weight': torch.zeros(1)}}
    fit_checkpoint(nn.Linear(1, 1), other)  # no SimMIMViT: left alone
    assert other['state_dict']['weight'].shape == (1,)


DECODER = ['head.decoder.weight', 'head.decoder.bias']
NORM = ['backbone.norm.weight', 'backbone.norm.bias']


def classifier(**changes) -> nn.Module:
    fc = nn.ModuleDict(dict(fc=nn.Linear(48, 7)))
    return nn.ModuleDict(dict(backbone=SimMIMViT(**{**ARGUMENTS, **FINE, **changes}), head=fc))


def pretraining_file(kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random weights of a pretraining, with our names and as a file of that kind holds them."""
    ours = randomise(SimMIM(backbone=TINY)).state_dict()
    return ours, from_plugin(ours, kind).state


@pytest.mark.parametrize(
    ('kind', 'new'),
    [
        ('plugin', []),
        ('official', []),
        ('timm', ['backbone.mask_token', *DECODER]),
        ('hf', DECODER),
        ('mmpretrain', ['backbone.mask_token', *DECODER]),
        ('backbone', DECODER),
    ],
)
@pytest.mark.parametrize('target', ['SimMIM', 'classifier', 'prefix'])
def test_what_was_loaded_left_and_new_is_exact(kind, new, target):
    """For each kind of file: what differs from the fresh model is what was loaded, what does not is new."""
    theirs, state = pretraining_file(kind)
    model, left = SimMIM(backbone=TINY), []
    if target != 'SimMIM':
        model = classifier()
        left = [*NORM, *(DECODER if kind in ('plugin', 'official') else [])]
        new = [name for name in new if name not in DECODER]
        new += ['backbone.fc_norm.weight', 'backbone.fc_norm.bias', 'head.fc.weight', 'head.fc.bias']
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if target == 'prefix':  # the backbone of another wrapper
        model = nn.ModuleDict(dict(student=model))
        new, left = [f'student.{name}' for name in new], [name.replace('backbone', 'student.backbone') for name in left]
        before = {f'student.{name}': value for name, value in before.items()}
    checkpoint = {'model' if kind == 'official' else 'state_dict': state}
    fitted = fit_checkpoint(model, checkpoint)
    model.load_state_dict(checkpoint['state_dict'])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert set(fitted.state) == changed and not fitted.resized
    assert sorted(fitted.kept) == sorted(set(before) - changed) == sorted(new)
    assert sorted(fitted.skipped) == sorted(left)
    if target == 'SimMIM':
        for name in changed:
            assert torch.equal(model.state_dict()[name], theirs[name]), name


@pytest.mark.parametrize('prefix', [None, 'mine'])
@pytest.mark.parametrize('kind', ['plugin', 'official', 'timm', 'hf', 'mmpretrain', 'backbone'])
def test_init_cfg_names_what_it_leaves_in_each_kind(tmp_path, capsys, kind, prefix):
    MMLogger.get_instance(f'kinds_{kind}_{prefix}')
    _, state = pretraining_file(kind)
    prefixes = {'plugin': 'backbone.', 'official': 'encoder.', 'mmpretrain': 'backbone.'}
    if prefix and kind not in prefixes:
        pytest.skip('no prefix')
    torch.save({'model': state}, tmp_path / 'a.pth')
    initialised(tmp_path / 'a.pth', prefix and prefixes[kind], **FINE)
    log = capsys.readouterr().out
    decoder = dict(plugin=DECODER, official=DECODER if not prefix else ['decoder.0.weight', 'decoder.0.bias'])
    left = ['norm.weight', 'norm.bias', *decoder.get(kind, ())]
    assert f'Skipped, not in the model: {", ".join(left)}\n' in log
    mask_token = '' if kind not in ('timm', 'mmpretrain') else 'mask_token, '
    assert f'; new ones, as initialised: {mask_token}fc_norm.weight, fc_norm.bias\n' in log


def test_a_tensor_of_another_shape_is_left_and_says_so():
    model = classifier()
    state = {f'backbone.{name}': value for name, value in SimMIMViT(**ARGUMENTS, **FINE).state_dict().items()}
    fitted = fit_checkpoint(model, {'state_dict': {**state, 'head.fc.weight': torch.ones(5, 48)}})
    assert fitted.skipped == ['head.fc.weight of shape (5, 48)']
    assert fitted.kept == ['head.fc.weight', 'head.fc.bias']


def test_load_from_another_project_under_the_same_prefix():
    """MMPretrain's BEiTViT is also a `backbone.` and shares a few names: it must be converted, not loaded in part."""
    theirs = randomise(SimMIM(backbone=TINY))
    state = from_plugin(theirs.state_dict(), 'mmpretrain').state
    assert {'backbone.cls_token', 'backbone.layers.0.ln1.weight'} <= set(state)
    ours = nn.ModuleDict(dict(backbone=SimMIMViT(**ARGUMENTS)))
    checkpoint = {'state_dict': dict(state)}
    fit_checkpoint(ours, checkpoint)
    ours.load_state_dict(checkpoint['state_dict'], strict=False)
    for name, value in theirs.backbone.state_dict().items():
        if name != 'mask_token':  # BEiTViT has none
            assert torch.equal(ours['backbone'].state_dict()[name], value), name
    with pytest.raises(ValueError, match='the checkpoint has 0 blocks and the model 3'):
        fit_state(ours['backbone'], {'cls_token': torch.zeros(1, 1, 48)})


def test_init_cfg_may_be_a_list(tmp_path):
    theirs = save_pretraining(tmp_path / 'a.pth')
    others = dict(type='Constant', layer='LayerNorm', val=7.0, bias=0.0)
    init_cfg = [dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')), others]
    ours = SimMIMViT(**ARGUMENTS, **FINE, init_cfg=init_cfg)
    ours.init_weights()
    assert (ours.fc_norm.weight == 7).all()  # not in the checkpoint
    assert torch.equal(ours.blocks[0].norm1.weight, theirs.backbone.blocks[0].norm1.weight)


def test_what_cannot_be_loaded_is_an_error(tmp_path):
    save_pretraining(tmp_path / 'a.pth')
    wide = dict(arch={**TINY['arch'], 'embed_dims': 64})
    match = r"a.pth': the checkpoint is of another architecture: .*cls_token \(1, 1, 48\) instead of \(1, 1, 64\)"
    with pytest.raises(ValueError, match=match):
        initialised(tmp_path / 'a.pth', **wide)
    with pytest.raises(ValueError, match='the checkpoint has 3 blocks and the model 2'):
        initialised(tmp_path / 'a.pth', arch={**TINY['arch'], 'num_layers': 2})
    with pytest.raises(ValueError, match='the checkpoint has 3 blocks and the model 4'):  # a table for each of the 4
        initialised(tmp_path / 'a.pth', arch={**TINY['arch'], 'num_layers': 4}, **FINE)
    with pytest.raises(ValueError, match=r'embed.proj.weight \(48, 3, 16, 16\) instead of .*set arch, patch_size'):
        initialised(tmp_path / 'a.pth', patch_size=8, in_channels=5)
    with pytest.raises(ValueError, match=r"no tensor has the prefix 'encoder.'; leave prefix out"):
        initialised(tmp_path / 'a.pth', prefix='encoder.')
    with pytest.raises(ValueError, match='init_cfg: checkpoint=None must be the path of a checkpoint file'):
        SimMIMViT(**ARGUMENTS, init_cfg=dict(type='Pretrained', checkpoint=None)).init_weights()
    with pytest.raises(FileNotFoundError, match=r"nothing.pth' does not exist"):
        initialised(tmp_path / 'nothing.pth')
    torch.save({'state_dict': nn.Linear(2, 2).state_dict()}, tmp_path / 'linear.pth')
    with pytest.raises(ValueError, match=r"linear.pth': this is no state dict of a ViT"):
        PretrainedViT(tmp_path / 'linear.pth')(SimMIMViT(**ARGUMENTS))
    with pytest.raises(ValueError, match=r'nothing was loaded: the checkpoint has backbone.cls_token'):
        fit_state(SimMIMViT(**ARGUMENTS), {'backbone.cls_token': torch.zeros(1, 1, 48)})


def test_grids_whose_tables_have_the_same_shape_are_distinguished(tmp_path):
    """2 x 3 and 3 x 2 patches: as many rows, but other offsets."""
    for arguments in ({}, FINE, dict(use_abs_pos_embed=True)):
        save_pretraining(tmp_path / 'landscape.pth', img_size=(32, 48), **arguments)
        theirs = load_weights(tmp_path / 'landscape.pth')
        ours = initialised(tmp_path / 'landscape.pth', img_size=(48, 32), **arguments)
        for name, value in ours.state_dict().items():
            if name.endswith('relative_position_bias_table'):
                expected = resize_table(theirs[f'backbone.{name}'], (2, 3), (3, 2))
                assert torch.equal(value, expected) and not torch.equal(value, theirs[f'backbone.{name}'])
            if name == 'pos_embed':
                assert not torch.equal(value, theirs['backbone.pos_embed'])


@pytest.mark.parametrize(
    ('theirs', 'ours', 'message'),
    [
        (FINE, {}, 'build SimMIMViT with use_rel_pos_bias=True and use_shared_rel_pos_bias=False'),
        ({}, dict(use_shared_rel_pos_bias=False), 'build SimMIMViT with use_shared_rel_pos_bias=True$'),
    ],
)
def test_bias_tables_are_not_lost_silently(tmp_path, theirs, ours, message):
    save_pretraining(tmp_path / 'a.pth', **theirs)
    with pytest.raises(ValueError, match=f'relative position bias tables .* no place for; {message}'):
        initialised(tmp_path / 'a.pth', **ours)


class Evil:
    def __reduce__(self):
        return (print, ('code from a checkpoint was run',))


def test_init_cfg_runs_no_code(tmp_path, capsys):
    torch.save({'state_dict': {}, 'extra': Evil()}, tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match=r'holds Python objects \(.*print\), which are refused'):
        initialised(tmp_path / 'evil.pth')
    assert 'code from' not in capsys.readouterr().out


def test_init_cfg_stays_as_given_and_takes_mmengines_other_keys(tmp_path):
    save_pretraining(tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), map_location='cpu')
    model = SimMIMViT(**{**ARGUMENTS, **FINE}, init_cfg=init_cfg)
    model.init_weights()
    assert model.init_cfg == init_cfg


def test_a_position_embedding_is_not_lost_silently(tmp_path):
    save_pretraining(tmp_path / 'a.pth', use_abs_pos_embed=True)
    match = r"a.pth': the checkpoint has a position embedding .* build SimMIMViT with use_abs_pos_embed=True"
    with pytest.raises(ValueError, match=match):
        initialised(tmp_path / 'a.pth')


@pytest.mark.skipif(len(signature(adapt_input_conv).parameters) < 3, reason='this timm adapts weights for RGB only')
@pytest.mark.parametrize(('old', 'new'), [(3, 5), (3, 1), (3, 2), (3, 7), (1, 3), (5, 4)])
def test_weights_of_other_channels_are_adapted_as_timm_does_on_request(tmp_path, capsys, old, new):
    theirs = save_pretraining(tmp_path / 'a.pth', in_channels=old).backbone
    MMLogger.get_instance(f'channels{old}{new}')
    name, before = 'patch_embed.proj.weight', theirs.state_dict()['patch_embed.proj.weight']
    means = before.double().mean(dim=1, keepdim=True).expand(-1, new, -1, -1) * old / new
    for how, expected in (('repeat', adapt_input_conv(new, before.clone(), old)), ('mean', means.float())):
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), adapt_channels=how)
        ours = SimMIMViT(**ARGUMENTS, in_channels=new, init_cfg=init_cfg)
        ours.init_weights()
        torch.testing.assert_close(ours.state_dict()[name], expected, rtol=1e-6, atol=1e-7)
        assert f'Resized to the model: {name} {old} -> {new} channels ({how})' in capsys.readouterr().out
        for other, value in theirs.state_dict().items():
            assert other == name or torch.equal(ours.state_dict()[other], value), other
        checkpoint = dict(state_dict=torch.load(tmp_path / 'a.pth')['state_dict'])
        model = SimMIM(backbone={**TINY, 'in_channels': new})
        fitted = fit_checkpoint(model, checkpoint, Asked(how))
        assert sorted(fitted.kept) == sorted(DECODER)  # it predicts pixels of other channels
        model.load_state_dict(checkpoint['state_dict'])
        assert torch.equal(model.backbone.state_dict()[name], ours.state_dict()[name])
        assert torch.equal(model.backbone.mask_token, theirs.mask_token)


def test_weights_of_other_channels_are_refused_without_a_request(tmp_path):
    save_pretraining(tmp_path / 'a.pth')
    match = r"images of 3 channels and the model for 5; .*in_channels=3 .*adapt_channels='repeat'.*--in-channels 5"
    with pytest.raises(ValueError, match=match):
        initialised(tmp_path / 'a.pth', in_channels=5)
    with pytest.raises(ValueError, match=match):
        fit_checkpoint(SimMIM(backbone={**TINY, 'in_channels': 5}), torch.load(tmp_path / 'a.pth'))
    with pytest.raises(ValueError, match='adapt_channels=True is unknown; choose one of'):
        PretrainedViT(str(tmp_path / 'a.pth'), adapt_channels=True)
