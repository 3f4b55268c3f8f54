"""Mask R-CNN with a ViT-L on COCO.

Source:   arXiv 2203.16527 and its public code: layer decay 0.8, drop path 0.4, the last block of each quarter global.
Command:  tools/dist_train.sh configs/detection/mask-rcnn_vit-l_coco.py 8 --cfg-options ...
Expected: 55.6 box AP, 49.2 mask AP with MAE's pretraining (published); not run here.
"""

_base_ = 'mask-rcnn_vit-b_coco.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.4, global_blocks=(5, 11, 17, 23)),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
