"""Photos below `data_root`, without labels: random crops of 224 px, and the published masks."""

_base_ = 'masks.py'

data_root = 'data/imagenet/train'

train_pipeline = [
    dict(type='LoadImage', defer=True),
    dict(type='RandomResizedCrop', size=224, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3), interpolation='bilinear'),
    dict(type='RandomHorizontalFlip'),
    _base_.masks.simmim,
    dict(type='PackSimMIMInputs'),
]
train_dataloader = dict(
    batch_size=256,
    num_workers=None,  # chosen by tools/train.py from the cores
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageFolder', data_root=None, pipeline=train_pipeline),  # None: the data_root above
)
