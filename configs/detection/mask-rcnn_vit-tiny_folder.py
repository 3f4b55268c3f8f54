"""Mask R-CNN with the small ViT of configs/simmim_vit-tiny_dense.py at 256 px on your own data: set `data_root`.

Small enough for two CPU cores: heads of 64 channels, maps of strides 4 to 32. Data as for mask-rcnn_vit-b_folder.py.

Source:   mask-rcnn_vit-b_folder.py at a small size, with a higher rate for the short training.
Command:  python tools/train.py configs/detection/mask-rcnn_vit-tiny_folder.py --cfg-options data_root=/path/to/data \
              load_from=work_dirs/simmim_vit-tiny_dense/epoch_60.pth
Cost:     407 images: up to 30 minutes on one of two cores of an AMD EPYC, bfloat16, busy (2026-11-26).
Expected: on facades, box AP 2.0 to 3.3 %, see docs/results.md.
"""

_base_ = ['mask-rcnn_vit-b_folder.py', '../_base_/vit_tiny.py']

image_size = (256, 256)
strides = [4, 8, 16, 32]
model = dict(
    backbone=dict(arch=dict(_delete_=True, **_base_.vit_tiny), **_base_.vit_tiny_grid),
    neck=dict(in_channels=192, out_channels=64, num_outs=4, start_level=1),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=strides),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=64, fc_out_channels=256, conv_out_channels=64, norm_cfg=None
        ),
        mask_roi_extractor=dict(out_channels=64, featmap_strides=strides),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=250),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=250)),
)
# Objects that are small at 256 px must not shrink further.
jitter = dict(scale=image_size, ratio_range=(0.8, 1.25))
crop = dict(crop_size=image_size)
pad = dict(size=image_size)
resize = dict(scale=image_size)
train_dataloader = dict(batch_size=2, num_workers=1)
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', milestones=[5], gamma=0.1),
]
train_cfg = dict(max_epochs=6, val_interval=2)
