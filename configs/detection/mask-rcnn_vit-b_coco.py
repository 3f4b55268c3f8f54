"""Mask R-CNN with a ViT-B on COCO: boxes and masks, the recipe of ViTDet.

Source:   arXiv 2203.16527 and its public code, see _base_/vitdet.py; there with MAE's pretraining.
Command:  tools/dist_train.sh configs/detection/mask-rcnn_vit-b_coco.py 8 --cfg-options data_root=/path/to/coco \
              load_from=vit-b.pth
Expected: 51.6 box AP, 45.9 mask AP with MAE's pretraining (published); not run here.
"""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '_base_/coco_1024px.py',
    '_base_/vitdet.py',
]

norm = dict(type='simmim_plugin.LayerNorm2d')
model = dict(
    backbone=dict(_delete_=True, **_base_.vit),
    neck=dict(_delete_=True, **_base_.pyramid),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm),
        mask_head=dict(norm_cfg=norm),
    ),
)
