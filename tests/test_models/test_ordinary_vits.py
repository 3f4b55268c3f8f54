"""SimMIMViT with a position embedding and without bias tables is timm's VisionTransformer, registers included."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm
from timm.models.beit import gen_relative_position_index
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from helpers.models import TINY
from helpers.other_projects import photos, randomise
from simmim_plugin import SimMIMViT
from simmim_plugin.checkpoints.other_projects import backbone_config, facts_of
from simmim_plugin.checkpoints.state_dicts import to_plugin
from simmim_plugin.engine.optimizers.layer_decay_constructor import has_decay
from simmim_plugin.registry import build_part

WIDTHS: dict[str, Any] = dict(embed_dim=64, depth=3, num_heads=4, num_classes=0, dynamic_img_size=True)
DINOV2 = dict(img_size=56, patch_size=14, init_values=1e-5)
MODELS: dict[str, dict[str, Any]] = {  # by what timm's published models of that kind have
    'augreg': dict(img_size=64, patch_size=16),
    'MAE, average pooling with fc_norm': dict(img_size=64, patch_size=16, global_pool='avg'),
    'DeiT, distilled': dict(img_size=64, patch_size=16),
    'DINOv2': DINOV2,
    'DINOv2 with registers': dict(DINOV2, reg_tokens=4, no_embed_class=True),
    'another epsilon': dict(img_size=64, patch_size=16, norm_layer=partial(LayerNorm, eps=1e-2)),
    'registers with positions': dict(img_size=(64, 32), patch_size=8, reg_tokens=1, mlp_ratio=3.5),
}


def theirs_of(name: str) -> VisionTransformer:
    kind = VisionTransformerDistilled if name.startswith('DeiT') else VisionTransformer
    model: Any = randomise(kind(**{**WIDTHS, **MODELS[name]}))
    return model


def ours_of(model: VisionTransformer) -> SimMIMViT:
    """The same model as a SimMIMViT, with the same weights."""
    block: Any = model.blocks[0]
    state = to_plugin(model.state_dict(), like=model.patch_embed.grid_size).state
    facts = facts_of(state, model.patch_embed.img_size, block.attn.num_heads, block.norm1.eps)
    ours = build_part({**backbone_config(facts), 'out_type': 'avg_featmap' if facts.pooled else 'raw'})
    own = {'mask_token': torch.zeros_like(model.cls_token)}
    own |= {name.removeprefix('backbone.'): value for name, value in state.items()}
    ours.to(model.cls_token.dtype).load_state_dict(own)  # strict
    return ours.eval()


def assert_same_features(ours: SimMIMViT, theirs: VisionTransformer, images: Tensor, tolerance: float) -> None:
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, return_prefix_tokens=True)
        torch.testing.assert_close(
            ours.forward_intermediates(images, return_prefix_tokens=True), expected, rtol=tolerance, atol=tolerance
        )
        features = theirs.forward_features(images)
        if ours.out_type == 'avg_featmap':
            features = theirs.forward_head(features, pre_logits=True)
        torch.testing.assert_close(ours(images)[0], features, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('name', MODELS)
def test_features_are_timms(name):
    theirs = theirs_of(name).double()  # before registers and their positions are added
    ours = ours_of(theirs)
    patch = ours.patch_size
    for kind in ('square', 'wide'):  # 64 x 64, 64 x 96
        images = photos(kind)
        images = images[..., : images.shape[2] // patch * patch, : images.shape[3] // patch * patch]
        assert_same_features(ours, theirs, images.double(), 1e-10)
        assert_same_features(deepcopy(ours).float(), deepcopy(theirs).float(), images, 1e-5)


@pytest.mark.parametrize('kind', ['shared', 'per block'])
def test_registers_have_the_rows_of_the_class_token_in_tables(kind):
    """A register is a second class token: bias and attention are those of timm's index with its row repeated."""
    ours: Any = randomise(
        vit(use_shared_rel_pos_bias=kind == 'shared', use_rel_pos_bias=kind != 'shared', num_registers=2)
    )
    tokens = [0, 0, 0, *range(1, 1 + 4 * 6)]
    index = gen_relative_position_index((4, 6))[tokens][:, tokens]
    block: Any = ours.blocks[0]
    table = (ours.rel_pos_bias or block.attn).relative_position_bias_table
    x = torch.randn(2, 3 + 24, 48)
    q, k, v = block.attn._qkv(x)
    scores = q @ k.transpose(-1, -2) / 12**0.5 + table[index].permute(2, 0, 1)
    expected = block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    shared = {None: ours.rel_pos_bias((4, 6))} if ours.rel_pos_bias else None
    torch.testing.assert_close(block.attn(x, (4, 6), shared), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.attn.attention_of(x, (4, 6), shared, 5), scores.softmax(-1)[:, :, 5])
    _, ((patches, prefix, attention),) = ours.forward_intermediates(photos('wide'), [0], True, attention_of=(0, 2))
    tokens, grid, shared = ours._embed(photos('wide'), None)
    torch.testing.assert_close(attention.flatten(2), block.attention_of(tokens, grid, shared, 5)[..., 3:])
    assert patches.shape == (2, 48, 4, 6) and prefix.shape == (2, 3, 48)


def vit(**changes: Any) -> SimMIMViT:
    arguments = {**TINY, 'img_size': (64, 96), **changes}
    del arguments['type']
    return SimMIMViT(**arguments)


def test_registers_are_left_out_of_maps_and_belong_to_the_first_layer():
    outputs = {}
    for out_type in ('raw', 'featmap', 'cls_token', 'avg_featmap'):
        outputs[out_type] = randomise(vit(num_registers=4, out_type=out_type))(photos('wide'))[0]
    raw = outputs['raw']
    assert raw.shape == (2, 1 + 4 + 24, 48)
    torch.testing.assert_close(outputs['featmap'].flatten(2).transpose(1, 2), raw[:, 5:], rtol=0, atol=0)
    torch.testing.assert_close(outputs['cls_token'], raw[:, 0], rtol=0, atol=0)
    assert outputs['avg_featmap'].shape == (2, 48)
    model = vit(num_registers=4, frozen_stages=1)
    assert model.get_layer_depth('backbone.reg_token', 'backbone.') == (0, 5)
    assert model.reg_token is not None and not model.reg_token.requires_grad
    assert 0 < model.reg_token.abs().max() <= 0.02  # drawn, not zeros: equal registers would stay equal
    assert not has_decay('reg_token', model.reg_token)
    without = vit()
    assert without.reg_token is None and 'reg_token' not in without.state_dict()
    assert randomise(vit(num_registers=4)).forward(photos('wide'), torch.ones(2, 4, 6))[0].shape == (2, 48, 4, 6)


@pytest.mark.parametrize('name, value', [('num_registers', -1), ('num_registers', 1.5), ('norm_eps', 0)])
def test_wrong_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f'{name}={value!r} must be'):
        vit(**{name: value})
