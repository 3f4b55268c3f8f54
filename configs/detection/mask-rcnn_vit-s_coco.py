"""Mask R-CNN with a ViT-S on COCO.

Source:   mask-rcnn_vit-b_coco.py at the width of a ViT-S, which ViTDet does not have.
Command:  tools/dist_train.sh configs/detection/mask-rcnn_vit-s_coco.py 8 --cfg-options ...
"""

_base_ = 'mask-rcnn_vit-b_coco.py'

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=384))
