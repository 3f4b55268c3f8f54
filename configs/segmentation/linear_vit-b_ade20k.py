"""Linear probe of a frozen ViT-B on ADE20K: one 1 x 1 convolution on the last block's patches.

Source:   upernet_vit-b_ade20k.py with a linear head on a frozen backbone, 40,000 iterations at 1e-3.
Command:  tools/dist_train.sh configs/segmentation/linear_vit-b_ade20k.py 8 --cfg-options data_root=/path/to/ade20k \
              load_from=vit-b.pth
"""

_base_ = 'upernet_vit-b_ade20k.py'

model = dict(
    backbone=dict(frozen_stages=12, drop_path_rate=0.0, out_indices=(11,)),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_channels=768,
        in_index=0,
        channels=768,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        align_corners=False,
        loss_decode=_base_.loss,
    ),
    auxiliary_head=None,
)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=40000),
]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
