"""Linear probe of the small frozen ViT on facades: how well its features alone classify each patch.

Source:   linear_vit-b_ade20k.py at the size of upernet_vit-tiny_facade.py, 600 iterations.
Command:  python tools/train.py configs/segmentation/linear_vit-tiny_facade.py --cfg-options data_root=/path/to/facade \
              load_from=work_dirs/simmim_vit-tiny_dense/epoch_60.pth
Cost:     nine minutes on one core of an AMD EPYC with AVX512-BF16, bfloat16, with other work running.
Expected: mIoU 6.3 and 6.4 (untrained features: 5.2 and 5.1); see docs/results.md.
"""

_base_ = 'upernet_vit-tiny_facade.py'

model = dict(
    backbone=dict(frozen_stages=6, drop_path_rate=0.0, out_indices=(5,)),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_channels=192,
        in_index=0,
        channels=192,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=None,
        align_corners=False,
        loss_decode=_base_.loss,
    ),
    auxiliary_head=None,
)
optim_wrapper = dict(optimizer=dict(lr=1e-2), paramwise_cfg=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=600),
]
train_cfg = dict(max_iters=600, val_interval=300)
default_hooks = dict(checkpoint=dict(interval=600))
