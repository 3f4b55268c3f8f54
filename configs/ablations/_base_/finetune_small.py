"""Fine-tuning of ablations at the size of small.py: 12 epochs on `data_root`/train, evaluated on `data_root`/val.

tools/ablate.py sets data_root, the checkpoint and the seed; without a checkpoint it trains from scratch.
"""

_base_ = '../../finetune/vit-tiny_folder.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=4, num_heads=2, feedforward_channels=512),
        img_size=80,
        init_cut=0.02,
    ),
    head=dict(in_channels=128),
)
crop = dict(size=80)
resize = dict(size=92)
center_crop = dict(size=80)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=64)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=2, end=12, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=12, val_interval=12)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None))
