"""Photos in `data_root`, without labels: random crops of 224 px and the published masks.

Parts of the pipeline have names: override them by `mask = dict(mask_ratio=0.5)` in a leaf config, or by
--cfg-options mask.mask_ratio=0.5.
"""

_base_ = 'masks.py'

data_root = 'data/imagenet/train'

load = dict(type='LoadImage', defer=True)
crop = dict(type='RandomResizedCrop', size=224, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3), interpolation='bilinear')
flip = dict(type='RandomHorizontalFlip')
mask = _base_.masks.simmim
pack = dict(type='PackSimMIMInputs')
train_pipeline = [dict(_part_=name) for name in ('load', 'crop', 'flip', 'mask', 'pack')]
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

# The loss on other images, with the same crops and masks each time: set val_root to their folder.
val_root = None
held_out = dict(
    val_dataloader=dict(
        batch_size=64,
        num_workers=None,
        persistent_workers=True,
        pin_memory=True,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='ImageFolder',
            data_root=None,  # None: val_root
            pipeline=[dict(_part_=name) for name in ('load', 'crop', 'mask', 'pack')],
        ),
    ),
    val_evaluator=dict(type='HeldOutLoss'),
    val_cfg=dict(),
)
