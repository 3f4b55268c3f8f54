"""ViT-S with patches of 4 px for images of 32 px, such as CIFAR-10's, in a folder: set `data_root`.

Source:   the recipe of configs/simmim_vit-b.py at a small size: 4 px patches, 8 px units, so 64 tokens. Batch 512, a
          higher learning rate, a cosine and no drop path for the short run. Crops keep at least half of the image.
Command:  python tools/train.py configs/simmim_vit-s_32px.py --cfg-options data_root=/path/to/images
Cost:     an H100, 16 cores, not compiled, 50,000 images of CIFAR-10: 9,300 images/s, 5.4 s per epoch (2026-11-27).
Expected: with 20 epochs (train_cfg.max_epochs=20 param_scheduler.1.end=20), masked-pixel loss on the fixed images
          0.930 -> 0.459; their visible mean gives 0.709. Fine-tuning from it: not run.
"""

_base_ = 'simmim_vit-s.py'

data_root = 'data/images'

model = dict(backbone=dict(img_size=32, patch_size=4, drop_path_rate=0.0))
masks = dict(  # the named masks for 4 px patches at 32 px
    simmim=dict(mask_patch_size=8, model_patch_size=4),
    simultaneous=dict(local=dict(unit=8), global_=dict(unit=16), model_patch_size=4),
    random_tokens=dict(mask_patch_size=4, model_patch_size=4),
    blockwise=dict(input_size=8, num_masking_patches=24, min_num_patches=5),
)
load = dict(keep=50_000)  # in each worker: 154 MB
crop = dict(size=32, scale=(0.5, 1.0))
mask = masks['simmim']
train_dataloader = dict(batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=512)
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.005, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=5, end=50, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=50)
