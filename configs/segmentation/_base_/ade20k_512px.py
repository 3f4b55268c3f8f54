"""ADE20K (150 classes) in crops of 512 px, as in MMSegmentation; the top-level `data_root` is its folder."""

data_root = 'data/ade/ADEChallengeData2016'

load = dict(type='LoadImageFromFile')
annotations = dict(type='LoadAnnotations', reduce_zero_label=True)
jitter = dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True)
crop = dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75)
flip = dict(type='RandomFlip', prob=0.5)
distort = dict(type='PhotoMetricDistortion')
resize = dict(type='Resize', scale=(2048, 512), keep_ratio=True)
pack = dict(type='PackSegInputs')
train_pipeline = [dict(_part_=name) for name in ('load', 'annotations', 'jitter', 'crop', 'flip', 'distort', 'pack')]
# Annotations are loaded after the resizing, so metrics are computed at their original size.
test_pipeline = [dict(_part_=name) for name in ('load', 'resize', 'annotations', 'pack')]
train_dataloader = dict(
    batch_size=2,
    num_workers=None,  # chosen by tools/train.py from the cores
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KDataset',
        data_root=None,  # the data_root above
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=None,  # chosen by tools/train.py from the cores
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KDataset',
        data_root=None,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
