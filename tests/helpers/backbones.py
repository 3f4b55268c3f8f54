"""Tiny backbones of other libraries, with weights that those libraries made, none of them zero."""

from typing import Any

import timm
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

_HF = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=2)
_MM = dict(embed_dims=48, num_layers=2, num_heads=2, feedforward_channels=96)
# Arguments of MaskedBackbone, by name.
BACKBONES: dict[str, dict[str, Any]] = {
    'timm-convnext': dict(
        model=dict(type='timm', name='convnext_tiny', depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), img_size=64
    ),
    'timm-vit': dict(
        model=dict(type='timm', name='vit_tiny_patch16_224', img_size=64, depth=2, embed_dim=48), mask_at='tokens'
    ),
    'timm-resnet': dict(
        model=dict(type='timm', name='resnet18', layers=(1, 1, 1, 1), channels=(8, 16, 24, 32)), img_size=64
    ),
    'timm-eva02': dict(
        model=dict(type='timm', name='eva02_tiny_patch14_224', img_size=56, depth=2, embed_dim=48, num_heads=2),
        mask_at='tokens',
    ),
    'timm-dinov3': dict(
        model=dict(type='timm', name='vit_small_patch16_dinov3', img_size=64, depth=2, embed_dim=48, num_heads=2),
        mask_at='tokens',
    ),
    'timm-swin': dict(
        model=dict(
            type='timm', name='swin_tiny_patch4_window7_224', img_size=64, window_size=2, depths=(1, 1, 1, 1),
            embed_dim=16, num_heads=(1, 1, 2, 2),
        ),
        mask_at='tokens',
    ),
    'hf-vit': dict(
        model=dict(type='transformers', model_type='vit', image_size=64, intermediate_size=96, **_HF), mask_at='tokens'
    ),
    'hf-dinov2': dict(model=dict(type='transformers', model_type='dinov2', image_size=56, **_HF), mask_at='tokens'),
    'hf-dinov3': dict(
        model=dict(
            type='transformers', model_type='dinov3_vit', image_size=64, intermediate_size=96, num_register_tokens=3,
            **_HF,
        ),
        mask_at='tokens',
    ),
    'hf-convnext': dict(
        model=dict(type='transformers', model_type='convnext', hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
        img_size=64,
    ),
    'hf-resnet': dict(
        model=dict(
            type='transformers', model_type='resnet', embedding_size=8, hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1], layer_type='basic',
        ),
        img_size=64,
    ),
    'mmpretrain-convnext': dict(
        model=dict(
            type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32]),
            gap_before_final_norm=False, out_indices=(0, 1, 2, 3),
        ),
        img_size=64,
    ),
    'mmpretrain-resnet': dict(
        model=dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8, out_indices=(0, 1, 2, 3)),
        img_size=64,
    ),
    'mmpretrain-swin': dict(
        model=dict(
            type='mmpretrain.SwinTransformer', img_size=64, window_size=2, out_indices=(0, 1, 2, 3),
            arch=dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]),
        ),
        mask_at='tokens',
    ),
    'mmpretrain-eva02': dict(
        model=dict(type='mmpretrain.ViTEVA02', arch=_MM, img_size=64, patch_size=16, out_type='featmap'),
        mask_at='tokens',
    ),
    'mmpretrain-timm': dict(
        model=dict(
            type='mmpretrain.TIMMBackbone', model_name='convnext_tiny', features_only=True, depths=(1, 1, 1, 1),
            dims=(8, 16, 24, 32),
        ),
        img_size=64,
    ),
}  # fmt: skip
FAST = ('timm-convnext', 'timm-vit')


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make every weight and running statistic random, so that none is 0 or 1 by accident."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * 0.05
            value.copy_(noise.abs() + 0.5 if name.endswith('running_var') else value + noise)
    return model.eval()


def library_model(name: str) -> nn.Module:
    """The model as its library builds it, without ours."""
    config = dict(BACKBONES[name]['model'])
    kind = config.pop('type')
    if kind == 'timm':
        return timm.create_model(config.pop('name'), num_classes=0, **config).eval()
    if kind == 'transformers':
        from transformers import AutoConfig, AutoModel

        return AutoModel.from_config(AutoConfig.for_model(config.pop('model_type'), **config)).eval()
    init_default_scope('mmpretrain')
    model = MODELS.build({'type': kind, '_scope_': 'mmpretrain', **config})
    model.eval()  # which returns nothing there
    return model


def library_map(name: str, model: Any, images: Tensor, side: int) -> Tensor:
    """Its last feature map, (B, C, h, w)."""
    if name.startswith('timm'):
        features = model.forward_features(images)
    else:
        features = model(images)
        features = features.last_hidden_state if name.startswith('hf') else features[-1]
    if features.ndim == 3:
        features = features[:, -side * side :].transpose(1, 2).reshape(len(images), -1, side, side)
    return features.permute(0, 3, 1, 2) if name == 'timm-swin' else features
