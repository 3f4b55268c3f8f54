import math
import re

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from timm.models.beit import Beit
from torch import nn

from helpers.models import TINY
from simmim_plugin import SimMIMViT
from simmim_plugin.models.layers.architecture import block_numbers

pytestmark = pytest.mark.core

ARGUMENTS = {k: v for k, v in TINY.items() if k != 'type'}


def tiny(**changes) -> SimMIMViT:
    return SimMIMViT(**{**ARGUMENTS, **changes})


def randomise(model: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)


@pytest.mark.parametrize(('shared', 'per_block'), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize('pooled', [True, False])
@pytest.mark.parametrize('absolute', [True, False])
def test_equals_timms_beit(shared, per_block, pooled, absolute):
    theirs = Beit(
        img_size=(64, 48), patch_size=16, embed_dim=48, depth=3, num_heads=4, init_values=0.1, num_classes=0,
        use_rel_pos_bias=per_block, use_shared_rel_pos_bias=shared, use_abs_pos_emb=absolute,
        global_pool='avg' if pooled else 'token',
    ).eval()  # fmt: skip
    randomise(theirs)
    ours = tiny(
        img_size=(64, 48), use_rel_pos_bias=per_block, use_shared_rel_pos_bias=shared, use_abs_pos_embed=absolute,
        out_type='avg_featmap' if pooled else 'cls_token',
    ).eval()  # fmt: skip
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == ['mask_token']
    assert all(key.endswith('relative_position_index') for key in unexpected)  # a buffer that older timm saves
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert torch.allclose(ours(x)[0], theirs(x), atol=1e-5, rtol=1e-5)


def test_mask_token_replaces_patches_before_the_blocks():
    model = tiny(use_shared_rel_pos_bias=False).eval()
    randomise(model)
    image = torch.randn(1, 3, 64, 64)
    mask = torch.zeros(1, 4, 4)
    mask[0, 1, 2] = 1
    changed = image.clone()
    changed[..., 16:32, 32:48] += 5  # what is under the mask cannot be seen
    with torch.no_grad():
        assert torch.equal(model(image, mask)[0], model(changed, mask)[0])
        assert not torch.allclose(model(image)[0], model(changed)[0])
        assert torch.allclose(model(image)[0], model(image, torch.zeros(1, 4, 4))[0])


def test_out_types_and_indices():
    x = torch.randn(2, 3, 64, 32)
    maps = tiny(out_indices=(0, 1, -1))(x)
    assert [tuple(m.shape) for m in maps] == [(2, 48, 4, 2)] * 3
    torch.manual_seed(0)
    raw_model = tiny(out_type='raw', out_indices=(1, 2)).eval()
    state = raw_model.state_dict()
    raw = raw_model(x)
    assert raw[1].shape == (2, 9, 48)
    cls_model, map_model = tiny(out_type='cls_token'), tiny(out_indices=[1, 2])
    for model in (cls_model, map_model):
        model.load_state_dict(state)
        model.eval()
    assert torch.equal(cls_model(x)[0], raw[1][:, 0])
    for features, tokens in zip(map_model(x), raw):
        assert torch.equal(features.flatten(2).transpose(1, 2), tokens[:, 1:])
    # The final norm is on the last block's output only: normalised tokens have mean 0.
    assert raw[1].mean(-1).abs().max() < 1e-5 < raw[0].mean(-1).abs().max()
    assert tiny(out_type='avg_featmap')(x)[0].shape == (2, 48)


@pytest.mark.parametrize('size', [(64, 64), (96, 32), (16, 160), (128, 112)])
@pytest.mark.parametrize('kind', ['use_shared_rel_pos_bias', 'use_rel_pos_bias', 'use_abs_pos_embed'])
def test_any_multiple_of_the_patch_works(size, kind):
    flags = dict.fromkeys(('use_shared_rel_pos_bias', 'use_rel_pos_bias', 'use_abs_pos_embed'), False) | {kind: True}
    model = tiny(**flags)
    randomise(model)
    x = torch.randn(1, 3, *size)
    trained = model(x)[0]
    assert trained.shape == (1, 48, size[0] // 16, size[1] // 16)
    model.eval()
    with torch.no_grad():
        once, again = model(x)[0], model(x)[0]
    assert torch.equal(once, again)
    assert torch.allclose(once, trained, atol=1e-5)


@pytest.mark.parametrize('channels', [1, 2, 5, 13])
def test_any_number_of_channels(channels):
    assert tiny(in_channels=channels)(torch.randn(1, channels, 64, 64))[0].shape == (1, 48, 4, 4)


def test_initialisation_statistics():
    torch.manual_seed(0)
    model = SimMIMViT(arch='small', img_size=64, use_abs_pos_embed=True)
    # A normal of std 0.02 cut at one std keeps std * sqrt(1 - 2 * phi(1) / (2 * Phi(1) - 1)) = 0.5396 of it.
    phi, covered = math.exp(-0.5) / math.sqrt(2 * math.pi), math.erf(1 / math.sqrt(2))
    cut_std = 0.02 * math.sqrt(1 - 2 * phi / covered)
    assert cut_std == pytest.approx(0.0107912, rel=1e-4)
    for i, block in enumerate(model.blocks, start=1):
        for weight, scale in (
            (block.attn.qkv.weight, 1),
            (block.mlp.fc1.weight, 1),
            (block.attn.proj.weight, math.sqrt(2 * i)),
            (block.mlp.fc2.weight, math.sqrt(2 * i)),
        ):
            assert weight.std().item() == pytest.approx(cut_std / scale, rel=0.01)
            assert weight.mean().item() == pytest.approx(0, abs=2e-4)
            assert weight.abs().max().item() <= 0.02 / scale + 1e-7
        for bias in (block.attn.q_bias, block.attn.v_bias, block.attn.proj.bias, block.mlp.fc1.bias):
            assert not bias.any()
        assert (block.gamma_1 == 0.1).all() and (block.gamma_2 == 0.1).all()
        assert (block.norm1.weight == 1).all()
    for drawn in (model.patch_embed.proj.weight, model.pos_embed, model.cls_token, model.mask_token):
        assert 0 < drawn.abs().max().item() <= 0.02
    assert not model.rel_pos_bias.relative_position_bias_table.any()
    wide = SimMIMViT(arch='small', img_size=64, init_cut=2.0)
    assert wide.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.01)


def test_drop_path_rises_linearly():
    rates = [block.drop_path.drop_prob for block in SimMIMViT(arch='small', img_size=32, drop_path_rate=0.1).blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


@pytest.mark.parametrize(
    ('arch', 'parameters'), [('small', 21.6e6), ('base', 85.8e6), ('large', 303.3e6), ('huge', 630.8e6)]
)
def test_sizes_are_the_usual_ones(arch, parameters):
    with torch.device('meta'):
        model = SimMIMViT(arch=arch, patch_size=14 if arch == 'huge' else 16)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.005)


def test_frozen_stages():
    model = tiny(frozen_stages=2, drop_path_rate=0.5).train()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split('.')[1] for name in trainable if name.startswith('blocks')} == {'2'}
    assert not {'cls_token', 'mask_token', 'patch_embed.proj.weight'} & trainable
    assert {'norm.weight', 'rel_pos_bias.relative_position_bias_table'} <= trainable
    assert not model.blocks[1].training and model.blocks[2].training
    assert not [p for p in tiny(frozen_stages=3).parameters() if p.requires_grad]
    assert all(p.requires_grad for p in tiny().parameters())


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    plain, saving = tiny(), tiny(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 4, 4) < 0.5
    for model in (plain, saving):
        model(x, mask)[0].square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-6), name


@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
def test_a_shared_table_is_copied_to_every_block(loader):
    shared = tiny().eval()
    randomise(shared)
    per_block = tiny(use_shared_rel_pos_bias=False, use_rel_pos_bias=True).eval()
    if loader == 'torch':
        per_block.load_state_dict(shared.state_dict())
    else:
        load_state_dict(per_block, shared.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(per_block(x)[0], shared(x)[0])


def test_every_parameter_has_a_gradient_without_a_mask():
    model = tiny(use_abs_pos_embed=True).train()
    model(torch.randn(1, 3, 64, 64))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not model.mask_token.grad.any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            dict(img_size=60),
            r'img_size of 60 x 60 px: both sides must be multiples of the patch, 16 px, e.g. 64 x 64',
        ),
        (dict(img_size=(64, 64, 3)), r'img_size=\(64, 64, 3\) must be one side or \(height, width\)'),
        (dict(img_size=64.0), r'img_size=64.0 must be one side'),
        (
            dict(arch='giant'),
            r"arch='giant' is unknown; choose one of 'small', 'base', 'large', 'huge'; or give a dict of embed_dims",
        ),
        (
            dict(arch=dict(embed_dims=48)),
            "arch={'embed_dims': 48} must be a dict of embed_dims, num_layers, num_heads,",
        ),
        (dict(arch=12), 'arch=12 must be a dict of embed_dims'),
        (dict(arch={**TINY['arch'], 'num_layers': 'x'}), "arch.num_layers='x' must be a whole number from 1 to 1024"),
        (dict(arch={**TINY['arch'], 'num_heads': 0}), 'arch.num_heads=0 must be a whole number from 1 to 1024'),
        (dict(arch={**TINY['arch'], 'num_heads': 5}), 'embed_dims=48 must be a multiple of num_heads=5'),
        (dict(use_rel_pos_bias=True), 'exclude each other'),
        (dict(out_type='map'), "out_type='map' is unknown"),
        (dict(out_indices=3), r'out_indices=3 must be a whole number from -3 to 2; the model has 3 blocks'),
        (dict(out_indices=1.0), r'out_indices=1.0 must be a whole number from -3 to 2'),
        (dict(out_indices=[]), r'out_indices=\[\] must be one or more blocks'),
        (dict(out_indices=(1, 0)), r'out_indices=\(1, 0\) must be one or more blocks, rising'),
        (dict(out_indices=(2, -1)), r'out_indices=\(2, -1\) must be .* each once'),
        (dict(frozen_stages=4), 'frozen_stages=4 must be a whole number from -1 to 3; the number of blocks'),
        (dict(drop_path_rate=1.0), r'drop_path_rate=1.0 must be a number in \[0, 1\); the published value is 0.1'),
        (dict(drop_path_rate=float('nan')), 'drop_path_rate=nan must be'),
        (dict(layer_scale_init_value=None), 'layer_scale_init_value=None must be a number of at least 0; 0 leaves'),
        (dict(init_cut=0), 'init_cut=0 must be a number above 0; the published values are 0.02 and 2'),
        (dict(patch_size=0), 'SimMIMViT.patch_size=0 must be a whole number of at least 1; e.g. 16'),
        (dict(in_channels=0), 'SimMIMViT.in_channels=0 must be a whole number of at least 1; 3 for RGB'),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


def test_block_numbers():
    assert block_numbers(None, 12) == [3, 6, 9, 12] and block_numbers('all', 3) == [1, 2, 3]
    assert block_numbers([3, 1, 3], 3) == [1, 3]
    for wrong in (1.0, [0], [4], ['x'], [True], []):
        with pytest.raises(ValueError, match=re.escape(f'blocks={wrong}: the model has blocks 1 ... 3; give numbers')):
            block_numbers(wrong, 3)


def test_wrong_inputs_are_named():
    model = tiny()
    with pytest.raises(ValueError, match=r'in_channels=3, but got an input of shape \(1, 5, 64, 64\)'):
        model(torch.zeros(1, 5, 64, 64))
    with pytest.raises(ValueError, match='input of 64 x 60 px'):
        model(torch.zeros(1, 3, 64, 60))
    with pytest.raises(ValueError, match=r'mask of shape \(1, 8, 8\) does not fit: expected \(1, 4, 4\)'):
        model(torch.zeros(1, 3, 64, 64), torch.zeros(1, 8, 8))
