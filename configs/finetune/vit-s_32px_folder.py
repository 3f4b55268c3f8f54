"""Fine-tune the ViT-S of configs/simmim_vit-s_32px.py on your own classes: set `data_root` and `load_from`.

`data_root` has the folders train/ and val/, each with a folder per class, of images of 32 px such as CIFAR-10's.

Source:   vit-tiny_folder.py with a larger batch and fewer epochs; validation images are not cropped.
Command:  python tools/train.py configs/finetune/vit-s_32px_folder.py \
              --cfg-options data_root=/path/to/data load_from=work_dirs/simmim_vit-s_32px/epoch_50.pth
"""

_base_ = 'vit-tiny_folder.py'

model = dict(backbone=dict(arch='small', img_size=32, patch_size=4), head=dict(in_channels=384))
load = dict(keep=50_000)  # in each worker: 154 MB
crop = dict(size=32, scale=(0.5, 1.0))
train_dataloader = dict(batch_size=256, num_workers=2)
val_dataloader = dict(
    batch_size=500, num_workers=2, dataset=dict(pipeline=[dict(_part_=name) for name in ('load', 'pack')])
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = [
    dict(type='simmim_plugin.WarmupCosineLR', warmup=1, end=6, floor_ratio=2e-4, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=6)
