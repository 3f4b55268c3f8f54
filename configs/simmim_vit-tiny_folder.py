"""A ViT of 2.7 M parameters at 64 px on your own folder, small enough for two CPU cores: set `data_root`.

Source:   the recipe of configs/simmim_vit-b.py at a small size: 8 px patches, 16 px units, so 64 tokens. Batch 32, for
          many iterations from few images; a higher learning rate, a cosine and no drop path for the short run.
Command:  python tools/train.py configs/simmim_vit-tiny_folder.py --cfg-options data_root=/path/to/images
Cost:     3,068 photos of 160 px: see docs/pretrain.md.
Expected: on these, masked-pixel loss on the fixed images 1.03 -> 0.49 to 0.50; their visible mean gives 0.78.
"""

_base_ = 'simmim_vit-b_folder.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=64,
        patch_size=8,
        drop_path_rate=0.0,
    )
)
masks = dict(  # the named masks for 8 px patches at 64 px
    simmim=dict(mask_patch_size=16, model_patch_size=8),
    simultaneous=dict(local=dict(unit=16), global_=dict(unit=32), model_patch_size=8),
    random_tokens=dict(mask_patch_size=8, model_patch_size=8),
    blockwise=dict(input_size=8, num_masking_patches=24, min_num_patches=5),
)
mask = masks['simmim']
crop = dict(size=64)
train_dataloader = dict(batch_size=32, num_workers=2)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
auto_scale_lr = dict(base_batch_size=32)
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.005, end=6, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=6, end=60, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=60)
