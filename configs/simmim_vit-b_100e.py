"""ViT-B/16, 100 epochs: a short schedule for comparisons, like the published one for Swin-B.

Source:   arXiv 2111.09886 (100 epochs with Swin-B: 82.8 % at 192 px); no published result for ViT-B.
Command:  tools/dist_train.sh configs/simmim_vit-b_100e.py 8
"""

_base_ = 'simmim_vit-b.py'

param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.005, end=10, convert_to_iter_based=True),
    dict(type='MultiStepLR', milestones=[90], gamma=0.1),
]
train_cfg = dict(max_epochs=100)
