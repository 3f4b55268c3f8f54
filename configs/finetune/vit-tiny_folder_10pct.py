"""Fine-tune on your own classes with the labels of 10 % of the training images, at least one of each class.

Source:   vit-tiny_folder.py with five times the epochs, since each has few images, and with mixup and cutmix as
          in vit-b_in1k.py.
Command:  python tools/train.py configs/finetune/vit-tiny_folder_10pct.py --cfg-options data_root=... load_from=...
Cost:     a tenth of 3,068 photos: see docs/results.md.
Expected: on these, see docs/results.md.
"""

_base_ = 'vit-tiny_folder.py'

model = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
train_dataloader = dict(
    dataset=dict(_delete_=True, type='simmim_plugin.FewLabels', fraction=0.1, dataset=_base_.train_dataloader.dataset)
)
param_scheduler = [
    dict(type='simmim_plugin.WarmupCosineLR', warmup=20, end=100, floor_ratio=2e-4, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=100, val_interval=10)
