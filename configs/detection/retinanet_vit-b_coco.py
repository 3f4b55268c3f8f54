"""RetinaNet with a ViT-B on COCO: boxes in one stage.

Source:   the recipe of ViTDet (_base_/vitdet.py) with MMDetection's RetinaNet; the pyramid starts at stride 8.
Command:  tools/dist_train.sh configs/detection/retinanet_vit-b_coco.py 8 --cfg-options data_root=/path/to/coco \
              load_from=vit-b.pth
Cost:     not measured.
Expected: not run.
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
train_pipeline = _base_.train_pipeline
train_pipeline[1].with_mask = False
test_pipeline = _base_.test_pipeline
test_pipeline[2].with_mask = False
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
