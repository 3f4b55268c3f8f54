"""ViT-L/16 (304 M parameters), ImageNet-1k, 224 px, 800 epochs.

Source:   the recipe of configs/simmim_vit-b.py; no published result for this size.
Command:  tools/dist_train.sh configs/simmim_vit-l.py 8
"""

_base_ = 'simmim_vit-b.py'

model = dict(backbone=dict(arch='large'))
