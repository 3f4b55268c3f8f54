"""Options for a detector and a segmenter of a tiny ViT."""

from helpers.paths import ROOT

ARCH = 'dict(_delete_=True, embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)'
LOADERS = 'dict(batch_size=2, num_workers=0, persistent_workers=False)'
DETECTION = f"""_base_ = {str(ROOT / 'configs/detection/mask-rcnn_vit-tiny_folder.py')!r}
model = dict(backbone=dict(arch={ARCH}, global_blocks=(2,)), neck=dict(in_channels=16))
train_dataloader = {LOADERS}
val_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
param_scheduler = []
"""
SEGMENTATION = f"""_base_ = {str(ROOT / 'configs/segmentation/upernet_vit-tiny_folder.py')!r}
model = dict(
    backbone=dict(arch={ARCH}, global_blocks=(2,), out_indices=(0, 1, 2, 3)),
    neck=dict(embed_dim=16), decode_head=dict(in_channels=[16] * 4), auxiliary_head=dict(in_channels=16),
)
train_dataloader = {LOADERS}
val_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters=4, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=1))
param_scheduler = []
"""
