"""COCO at 1024 px with large-scale jitter, boxes and masks; the top-level `data_root` is its folder."""

image_size = (1024, 1024)
data_root = 'data/coco'

load = dict(type='LoadImageFromFile')
annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
flip = dict(type='RandomFlip', prob=0.5)
jitter = dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True)
crop = dict(
    type='RandomCrop', crop_type='absolute', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True
)
filter_boxes = dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2))
pad = dict(type='Pad', size=image_size, pad_val=dict(img=(114, 114, 114)))
pack = dict(type='PackDetInputs')
resize = dict(type='Resize', scale=image_size, keep_ratio=True)  # the model pads; boxes are clipped to the image
pack_test = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
train_pipeline = [
    dict(_part_=name) for name in ('load', 'annotations', 'flip', 'jitter', 'crop', 'filter_boxes', 'pad', 'pack')
]
test_pipeline = [dict(_part_=name) for name in ('load', 'resize', 'annotations', 'pack_test')]
train_dataloader = dict(
    batch_size=8,
    num_workers=None,  # chosen by tools/train.py from the cores
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=None,  # the data_root above
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=None,  # chosen by tools/train.py from the cores
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=None,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=None, metric=['bbox', 'segm'])  # None: that of the validation data
test_evaluator = val_evaluator
