"""UPerNet with the small ViT of configs/simmim_vit-tiny_dense.py at 256 px on your own masks: set `data_root`.

Small enough for two CPU cores: heads of 64 channels, maps of strides 4 to 32. Data as for upernet_vit-b_folder.py.

Source:   upernet_vit-b_folder.py at a small size, with windows as in configs/detection, and a higher rate for
          the short training.
Command:  python tools/train.py configs/segmentation/upernet_vit-tiny_folder.py --cfg-options data_root=/path/to/data \
              load_from=work_dirs/simmim_vit-tiny_dense/epoch_60.pth
Expected: see upernet_vit-tiny_facade.py.
"""

_base_ = ['upernet_vit-b_folder.py', '../_base_/vit_tiny.py']

crop_size = (256, 256)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch=dict(_delete_=True, **_base_.vit_tiny), out_indices=(1, 2, 3, 5), **_base_.vit_tiny_grid),
    neck=dict(embed_dim=192, rescales=[2, 1, 0.5, 0.25]),
    decode_head=dict(in_channels=[192] * 4, channels=64),
    auxiliary_head=dict(in_channels=192, channels=64),
    test_cfg=dict(_delete_=True, mode='whole'),
)
jitter = dict(scale=(1024, 256))
crop = dict(crop_size=crop_size)
resize = dict(scale=(1024, 256))
train_dataloader = dict(batch_size=4, num_workers=1)
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(layer_decay_rate=0.75))
auto_scale_lr = dict(base_batch_size=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=100, end=1500),
]
train_cfg = dict(max_iters=1500, val_interval=300)
default_hooks = dict(checkpoint=dict(interval=1500))
