"""Fine-tuning that judges ablations at the size of small.py: 12 epochs on `data_root`/train, judged on `data_root`/val.

Classes are the folders. tools/ablate.py sets data_root, the classifier's number of classes, the checkpoint and the
seed; without a checkpoint it trains from scratch.
"""

_base_ = '../../_base_/runtime.py'

default_scope = 'mmpretrain'
data_root = None

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=False),
    backbone=dict(
        type='simmim_plugin.SimMIMViT',
        arch=dict(embed_dims=128, num_layers=4, num_heads=2, feedforward_channels=512),
        img_size=80,
        patch_size=8,
        drop_path_rate=0.1,
        use_shared_rel_pos_bias=False,
        use_rel_pos_bias=True,
        out_type='avg_featmap',
    ),
    head=dict(
        type='LinearClsHead', num_classes=None, in_channels=128, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)
    ),
)

load = dict(type='simmim_plugin.LoadImage')
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root=None,
        data_prefix='train',
        pipeline=[
            load,
            dict(
                type='torchvision/RandomResizedCrop', size=80, scale=(0.3, 1.0), interpolation='bicubic', antialias=True
            ),
            dict(type='torchvision/RandomHorizontalFlip'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root=None,
        data_prefix='val',
        pipeline=[
            load,
            dict(type='torchvision/Resize', size=92, interpolation='bicubic', antialias=True),
            dict(type='torchvision/CenterCrop', size=80),
            dict(type='PackInputs'),
        ],
    ),
)
val_evaluator = dict(type='Accuracy', topk=1)
val_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=12)
optim_wrapper = dict(
    type='simmim_plugin.AutocastOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    constructor='LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.75, norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=2, end=12, convert_to_iter_based=True),
]
custom_hooks = []
log_processor = dict(type='simmim_plugin.SimMIMLogProcessor')
default_hooks = dict(checkpoint=dict(type='simmim_plugin.SimMIMCheckpointHook', max_keep_ckpts=1))
