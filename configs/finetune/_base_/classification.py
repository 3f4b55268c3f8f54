"""Base of all fine-tuning configs: a SimMIMViT with a linear classifier, layer decay, AdamW.

Set `load_from` to the pretraining checkpoint; without it, training starts from scratch.
"""

_base_ = '../../_base_/runtime.py'

default_scope = 'mmpretrain'
data_root = None

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=None, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=False),
    backbone=dict(
        type='simmim_plugin.SimMIMViT',
        drop_path_rate=0.1,
        use_shared_rel_pos_bias=False,
        use_rel_pos_bias=True,  # one table per block, initialised from the pretrained shared one
        out_type='avg_featmap',  # mean of the patch tokens, then a new norm; the pretrained one is not loaded
        init_cut=2.0,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=None,  # the number of class folders in the training data
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5),  # 0.02, times 0.001
    ),
)
train_dataloader = dict(
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
)
val_dataloader = dict(
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
test_dataloader = val_dataloader  # a leaf repeats this line, which merges its own changes
val_evaluator = [dict(type='Accuracy', topk=(1, 5)), dict(type='simmim_plugin.BalancedAccuracy')]
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='simmim_plugin.AutocastOptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
    constructor='simmim_plugin.SimMIMOptimWrapperConstructor',
)
custom_hooks = []
log_processor = dict(type='simmim_plugin.SimMIMLogProcessor')
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1'))
