"""RetinaNet with a ViT-B on COCO: boxes in one stage.

Source:   the recipe of ViTDet (_base_/vitdet.py) with MMDetection's RetinaNet; the pyramid starts at stride 8.
Command:  tools/dist_train.sh configs/detection/retinanet_vit-b_coco.py 8 --cfg-options data_root=/path/to/coco \
              load_from=vit-b.pth
"""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '_base_/coco_1024px.py',
    '_base_/vitdet.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.vit),
    neck=dict(_delete_=True, start_level=1, **_base_.pyramid),
)
annotations = dict(with_mask=False)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
