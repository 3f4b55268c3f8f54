"""What SimMIMViT does not represent exactly, or only in part, is refused, with the part that differs."""

import json
import re
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import nn

from helpers.families import ARCH, FAMILIES, hf_model, mmpretrain_vit, timm_vit
from helpers.other_projects import mmpretrain_model
from simmim_plugin import SimMIMViT
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import save_file
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.checkpoints.start import read_start
from simmim_plugin.checkpoints.state_dicts import to_plugin

SMALL: dict[str, Any] = dict(img_size=64, patch_size=16, embed_dim=64, depth=2, num_heads=4, num_classes=0)


def created(name: str, **changes: Any) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=0, **changes)


def transformers_model(name: str, config: str, **changes: Any) -> nn.Module:
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=64)
    return getattr(transformers, name)(getattr(transformers, config)(**{**sizes, 'patch_size': 16, **changes}))


VIT_SMALL: dict[str, Any] = dict(img_size=64, embed_dim=64, depth=2, num_heads=4)
OTHERS: dict[str, tuple[Any, str]] = {
    'QK-norm': (lambda: timm_vit(qk_norm=True), r'blocks\.0\.attn\.q_norm\.weight.*\(normalised queries and keys'),
    'norm in attention': (lambda: timm_vit(scale_attn_norm=True), r'attn\.norm\.weight.*norms in attention or MLP'),
    'norm before the blocks': (lambda: timm_vit(pre_norm=True), r'norm_pre\.weight.*\(a norm in front of the f'),
    'no class token': (lambda: timm_vit(class_token=False, global_pool='avg'), r'no class token \(cls_token\)'),
    'attention pooling': (lambda: timm_vit(global_pool='map'), r'attn_pool\..*pooling by attention'),
    'no biases of queries': (lambda: timm_vit(qkv_bias=False), r'the backbone lacks blocks\.0\.attn\.q_bias, '),
    'no position': (lambda: timm_vit(pos_embed=''), r'neither relative position bias tables nor a position embedding'),
    'parallel': (
        lambda: created('vit_base_patch16_18x2_224', **VIT_SMALL), r'it has attention and MLP in parallel'
    ),
    'parallel scaling': (
        lambda: timm_vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock),
        r'it has attention and MLP in parallel',
    ),
    'gated': (
        lambda: timm_vit(mlp_layer=timm.layers.SwiGLU), r'blocks\.0\.mlp\.fc1_g\.weight.*\(a gated MLP \(SwiGLU\)\)'
    ),
    'gated, packed': (
        lambda: timm_vit(mlp_layer=timm.layers.GluMlp), r'fc1\.weight has 128 rows and the fc2 behind it 64 columns'
    ),
    'rotary with a position embedding': (
        lambda: Eva(**SMALL, attn_type='rope', use_rot_pos_emb=True, init_values=0.1),
        r"blocks\.0\.gamma_1.*\(EVA's LayerScale \(gamma_1 next to qkv\.bias\)",
    ),
    'mixed rotary': (
        lambda: Eva(**SMALL, attn_type='rope', use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type='mixed'),
        r'rope\.freqs.*rotary position embedding',
    ),
    'convolutional stem': (
        lambda: created('vit_tiny_r_s16_p8_224', img_size=64, embed_dim=64, depth=2, num_heads=4),
        r'patch_embed\.backbone.* \(a convolutional stem\)',
    ),
    'Swin': (lambda: created('swin_tiny_patch4_window7_224'), r'it has stages of blocks \(Swin'),
    'ConvNeXt': (lambda: created('convnext_atto'), r'it has depthwise convolutions \(ConvNeXt'),
    'ResNet': (lambda: created('resnet18'), r'it has residual blocks of convolutions \(ResNet'),
    'CLIP': (
        lambda: transformers_model('CLIPVisionModel', 'CLIPVisionConfig'), r'it has a norm in front of the first block'
    ),
    'SigLIP': (
        lambda: transformers_model('SiglipVisionModel', 'SiglipVisionConfig'), r'it has pooling by attention'
    ),
    'DINOv3': (lambda: transformers_model('DINOv3ViTModel', 'DINOv3ViTConfig'), r'it has rotary position embedding'),
    'SwinModel': (
        lambda: transformers_model('SwinModel', 'SwinConfig', embed_dim=32, depths=[1, 1], num_heads=[2, 2]),
        r'it has stages of blocks \(Swin',
    ),
    'Dinov2 SwiGLU': (
        lambda: hf_model('Dinov2Model', use_swiglu_ffn=True), r'mlp\.weights_in\.weight.*\(a gated MLP \(SwiGLU\)\)'
    ),
    'MMPretrain pre-norm': (
        lambda: mmpretrain_model(mmpretrain_vit(pre_norm=True)), r'pre_norm\.weight.*a norm in front of the first block'
    ),
    'MMPretrain DeiT III': (
        lambda: mmpretrain_model(mmpretrain_vit(type='mmpretrain.DeiT3')), r'blocks apply ln1 twice and never ln2'
    ),
    'MMPretrain Swin': (
        lambda: mmpretrain_model(dict(type='mmpretrain.SwinTransformer')), r'it has stages of blocks \(Swin'
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', OTHERS)
def test_other_backbones_are_refused_with_the_part_that_differs(name):
    build, message = OTHERS[name]
    with pytest.raises(ValueError, match=f'(?s){message}.*(docs/backbones.md|--num-heads N)'):
        to_plugin(build().state_dict(), like=(4, 4))


def test_half_a_model_and_names_too_many_are_refused():
    state = FAMILIES['timm']().weights
    for gone in ('blocks.1.mlp.fc2.bias', 'blocks.0.norm1.bias', 'patch_embed.proj.bias', 'norm.weight'):
        with pytest.raises(ValueError, match=f'the backbone lacks {gone},.* half a model is not loaded'):
            to_plugin({name: value for name, value in state.items() if name != gone})
    own = {**to_plugin(state).state, 'backbone.mask_token': torch.zeros(1, 1, 64)}
    gone = ['patch_embed.proj.bias', 'norm.weight', 'norm.bias', 'blocks.1.attn.q_bias', 'blocks.0.mlp.fc1.weight']
    for name in gone:  # of our own files, too
        with pytest.raises(ValueError, match=f'the backbone lacks {name},.* half a model is not loaded'):
            to_plugin({key: value for key, value in own.items() if key != f'backbone.{name}'}, sure=True)
    with pytest.raises(ValueError, match=r'the backbone lacks blocks\.0\.norm2\.weight, blocks\.0\.norm2\.bias, '):
        to_plugin({name: value for name, value in state.items() if not name.startswith('blocks.0.norm2')})
    with pytest.raises(ValueError, match=r'SimMIMViT has no place for blocks\.1\.strange of the backbone, without'):
        to_plugin({**state, 'blocks.1.strange': torch.ones(1)})
    bias = 'blocks.0.attn.qkv.bias'
    for name, shape in ((bias, (64,)), ('pos_embed', (17, 64)), ('patch_embed.proj.weight', (64, 3, 2, 16, 16))):
        message = f'{name} is of shape {tuple(shape)}, which that of no ViT with 64 channels is'
        with pytest.raises(ValueError, match=re.escape(message)):
            to_plugin({**state, name: torch.ones(shape)})
    names = [f'layer{i}' for i in range(12)]
    with pytest.raises(
        ValueError, match=r'the families known are .*torchvision .*Swin .*It starts with layer0, .* layer9 \.\.\. \(12'
    ):
        to_plugin({name: torch.ones(1) for name in names})


def test_what_differs_from_the_model_is_an_error_not_half_loaded(tmp_path):
    pytest.importorskip('transformers')
    model = hf_model('ViTModel', hidden_act='gelu')
    model.save_pretrained(tmp_path)
    noted = read(tmp_path)
    assert read(tmp_path / 'model.safetensors').note == noted.note
    assert noted.num_heads == 4 and noted.img_size == (64, 64) and noted.part('backbone')['norm_eps'] == 1e-12
    arguments: dict[str, Any] = dict(
        arch=ARCH, img_size=64, use_shared_rel_pos_bias=False, use_abs_pos_embed=True, layer_scale_init_value=0.0,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path)),
    )  # fmt: skip
    SimMIMViT(**arguments).init_weights()
    for changes, message in (
        (dict(arch={**ARCH, 'num_heads': 8}), 'the checkpoint has 4 attention heads and the model 8'),
        (
            dict(layer_scale_init_value=0.1),
            r'the model has blocks\.0\.gamma_1, .* the checkpoint has not; set layer_scale_init_value \(0: none\) of S',
        ),
        (dict(num_registers=2), r'the model has reg_token and the checkpoint has not; set num_registers'),
        (dict(use_abs_pos_embed=False), r'position embedding \(pos_embed\) that the model has no place for'),
    ):
        with pytest.raises(ValueError, match=message):
            SimMIMViT(**{**arguments, **changes}).init_weights()
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'hidden_act': 'quick_gelu'}))
    with pytest.raises(
        ValueError, match=r"hidden_act='quick_gelu' in config\.json, and SimMIMViT has gelu; .*docs/backbones"
    ):
        SimMIMViT(**arguments).init_weights()
    for path in (tmp_path, tmp_path / 'model.safetensors'):
        for take in (read_start, lambda path: convert_file(path, tmp_path / 'ours.pth', 'plugin')):
            with pytest.raises(ValueError, match=r"hidden_act='quick_gelu' in config\.json"):
                take(str(path))
    save_file(FAMILIES['timm DINOv2']().weights, tmp_path / 'scaled.pth')
    with pytest.raises(
        ValueError, match=r'the checkpoint has blocks\.0\.gamma_1, .* and the model has not; set layer_scale'
    ):
        SimMIMViT(
            **{**arguments, 'init_cfg': dict(type='Pretrained', checkpoint=str(tmp_path / 'scaled.pth'))}
        ).init_weights()
