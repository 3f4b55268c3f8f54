"""ViT-S/16 (22 M parameters), ImageNet-1k, 224 px, 800 epochs.

Source:   the recipe of configs/simmim_vit-b.py; no published result for this size.
Command:  tools/dist_train.sh configs/simmim_vit-s.py 8
"""

_base_ = 'simmim_vit-b.py'

model = dict(backbone=dict(arch='small'))
