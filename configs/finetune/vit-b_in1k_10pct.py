"""Fine-tune ViT-B/16 with the labels of 10 % of ImageNet-1k's training images, the same share of each class.

The images are chosen by a seed, not those of SimCLR's list.

Source:   vit-b_in1k.py with three times the epochs, since each has few images; no published result for this share.
Command:  tools/dist_train.sh configs/finetune/vit-b_in1k_10pct.py 8 \
              --cfg-options load_from=work_dirs/simmim_vit-b/epoch_800.pth
"""

_base_ = 'vit-b_in1k.py'

train_dataloader = dict(
    dataset=dict(_delete_=True, type='simmim_plugin.FewLabels', fraction=0.1, dataset=_base_.train_dataloader.dataset)
)
param_scheduler = [
    dict(type='simmim_plugin.WarmupCosineLR', warmup=60, end=300, floor_ratio=2e-4, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=300, val_interval=10)
