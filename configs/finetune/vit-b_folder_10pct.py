"""Fine-tune on your own classes with the labels of 10 % of the training images, at least one of each class.

Source:   vit-b_folder.py with three times the epochs, since each has few images.
Command:  python tools/train.py configs/finetune/vit-b_folder_10pct.py --cfg-options data_root=... load_from=...
"""

_base_ = 'vit-b_folder.py'

train_dataloader = dict(
    dataset=dict(_delete_=True, type='simmim_plugin.FewLabels', fraction=0.1, dataset=_base_.train_dataloader.dataset)
)
param_scheduler = [
    dict(type='simmim_plugin.WarmupCosineLR', warmup=60, end=300, floor_ratio=2e-4, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=300, val_interval=10)
