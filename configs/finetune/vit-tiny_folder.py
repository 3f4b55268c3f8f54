"""Fine-tune the small ViT of configs/simmim_vit-tiny_folder.py on your own classes: set `data_root` and `load_from`.

`data_root` has the folders train/ and val/, each with a folder per class.

Source:   the recipe of vit-b_in1k.py at a small size, with crops and flips only, for the short training.
Command:  python tools/train.py configs/finetune/vit-tiny_folder.py \
              --cfg-options data_root=/path/to/data load_from=work_dirs/simmim_vit-tiny_folder/epoch_60.pth
Cost:     3,068 photos of 160 px, 20 epochs: see docs/results.md.
Expected: on these, see docs/results.md.
"""

_base_ = '_base_/classification.py'

model = dict(
    backbone=dict(
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768), img_size=64, patch_size=8
    ),
    head=dict(in_channels=192),
)
load = dict(type='simmim_plugin.LoadImage')
crop = dict(type='torchvision/RandomResizedCrop', size=64, scale=(0.3, 1.0), interpolation='bicubic', antialias=True)
flip = dict(type='torchvision/RandomHorizontalFlip')
resize = dict(type='torchvision/Resize', size=73, interpolation='bicubic', antialias=True)  # 64 * 256 / 224
center_crop = dict(type='torchvision/CenterCrop', size=64)
pack = dict(type='PackInputs')
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        type='simmim_plugin.ClassFolders',
        data_root=None,
        metainfo=None,  # the names of the folders
        data_prefix='train',
        pipeline=[dict(_part_=name) for name in ('load', 'crop', 'flip', 'pack')],
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=1,
    dataset=dict(
        type='simmim_plugin.ClassFolders',
        data_root=None,
        metainfo=None,  # the names of the folders
        data_prefix='val',
        pipeline=[dict(_part_=name) for name in ('load', 'resize', 'center_crop', 'pack')],
    ),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1.5e-3), paramwise_cfg=dict(layer_decay_rate=0.75))
auto_scale_lr = dict(enable=True, base_batch_size=32)
param_scheduler = [
    dict(type='simmim_plugin.WarmupCosineLR', warmup=4, end=20, floor_ratio=2e-4, convert_to_iter_based=True)
]
train_cfg = dict(type='simmim_plugin.ResumableTrainLoop', max_epochs=20, val_interval=1)
