"""A tiny Swin: 3 stages of 4, 8 and 16 channels at 48 px, windows of 3, features of stride 16, as in tests/data."""

from typing import Any

from helpers.commands import RUN

ARCH: dict[str, Any] = dict(embed_dims=4, depths=[2, 2, 2], num_heads=[1, 2, 4])
PRETRAIN: dict[str, Any] = dict(
    type='mmpretrain.SimMIMSwinTransformer',
    arch=ARCH,
    img_size=48,
    drop_path_rate=0.0,
    out_indices=(2,),
    stage_cfgs=dict(block_cfgs=dict(window_size=3)),
)
HEAD = dict(in_channels=16, patch_size=16, out_channels=3)

# Options that make configs/simmim_swin-b_192px.py as small, for photos of 64 px.
SMALL = [
    'model.backbone.arch.embed_dims=8',
    'model.backbone.arch.depths=[2,2,1,1]',
    'model.backbone.arch.num_heads=[1,2,2,4]',
    'model.backbone.img_size=64',
    'model.backbone.stage_cfgs.block_cfgs.window_size=2',
    'model.head.in_channels=64',
    'crop.size=64',
    'mask.mask_patch_size=16',
    *RUN,
]
