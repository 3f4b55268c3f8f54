"""A size for two CPU cores that tools/ablate.py merges into the leaves: a ViT of 0.8 M parameters, 80 px, patch 8.

10 x 10 tokens instead of the 14 x 14 of ViT-B at 224 px; mask lengths in pixels are scaled with the patch.
"""

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=4, num_heads=2, feedforward_channels=512),
        img_size=80,
        patch_size=8,
        drop_path_rate=0.0,
    )
)
train_dataloader = dict(batch_size=64, num_workers=1)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
auto_scale_lr = dict(base_batch_size=64)
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.005, end=3, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=3, end=30, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
