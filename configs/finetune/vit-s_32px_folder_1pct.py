"""Fine-tune on your own classes with the labels of 1 % of the training images, at least one of each class.

Source:   vit-s_32px_folder_10pct.py with half the batch and more epochs.
Command:  python tools/train.py configs/finetune/vit-s_32px_folder_1pct.py --cfg-options data_root=... load_from=...
"""

_base_ = 'vit-s_32px_folder_10pct.py'

train_dataloader = dict(batch_size=64, dataset=dict(fraction=0.01))
auto_scale_lr = dict(base_batch_size=64)
param_scheduler = [
    dict(type='simmim_plugin.WarmupCosineLR', warmup=15, end=100, floor_ratio=2e-4, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=100, val_interval=20)
