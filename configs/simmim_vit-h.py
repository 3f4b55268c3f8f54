"""ViT-H/14 (632 M parameters), ImageNet-1k, 224 px, 800 epochs; mask units of 28 px, two patches a side.

Activations are recomputed to save memory.

Source:   the recipe of configs/simmim_vit-b.py; no published result for this size.
Command:  tools/dist_train.sh configs/simmim_vit-h.py 8
"""

_base_ = 'simmim_vit-b.py'

model = dict(backbone=dict(arch='huge', patch_size=14, with_cp=True))
mask = dict(mask_patch_size=28, model_patch_size=14)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=4)
