"""Linear probe of ViT-B/16 on ImageNet-1k: batch-norm and a classifier on frozen features of block 8 of 12.

For data whose features fit in memory, tools/probe.py is faster: it computes them once.

Source:   block and expected figure: arXiv 2111.09886; training: the linear probe of arXiv 2111.06377 (LARS, 90 epochs).
Command:  tools/dist_train.sh configs/linear_probe/vit-b_in1k.py 8 \
              --cfg-options load_from=work_dirs/simmim_vit-b/epoch_800.pth       (8 x 2048 = total batch 16384)
Expected: 56.7 % top-1 after 800 epochs of pretraining (published); not run here.
"""

_base_ = '../finetune/vit-b_in1k.py'

model = dict(
    backbone=dict(
        frozen_stages=12,
        drop_path_rate=0.0,
        use_shared_rel_pos_bias=True,
        use_rel_pos_bias=False,
        out_type='featmap',
        out_indices=7,  # block 8
    ),
    neck=[dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=768)],
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(_delete_=True, type='TruncNormal', layer='Linear', std=0.01),
    ),
    train_cfg=None,
)
train_pipeline = [dict(_part_=name) for name in ('load', 'crop', 'flip', 'pack')]
train_dataloader = dict(batch_size=2048, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    _delete_=True,
    type='simmim_plugin.AutocastOptimWrapper',
    optimizer=dict(type='LARS', lr=6.4, weight_decay=0.0, momentum=0.9),
)
auto_scale_lr = dict(base_batch_size=16384)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=10, end=90, eta_min=0.0, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=90)
