"""Fine-tune on your own classes with the labels of 10 % of the training images, at least one of each class.

Source:   vit-s_32px_folder.py with half the batch and more epochs, since each class has few images, and with mixup
          and cutmix as in vit-b_in1k.py.
Command:  python tools/train.py configs/finetune/vit-s_32px_folder_10pct.py --cfg-options data_root=... load_from=...
"""

_base_ = 'vit-s_32px_folder.py'

model = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
train_dataloader = dict(
    batch_size=128,
    dataset=dict(_delete_=True, type='simmim_plugin.FewLabels', fraction=0.1, dataset=_base_.train_dataloader.dataset),
)
auto_scale_lr = dict(base_batch_size=128)
param_scheduler = [
    dict(type='simmim_plugin.WarmupCosineLR', warmup=5, end=25, floor_ratio=2e-4, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=25, val_interval=5)
