"""UPerNet with a ViT-S on ADE20K.

Source:   upernet_vit-b_ade20k.py at the size of a ViT-S.
Command:  tools/dist_train.sh configs/segmentation/upernet_vit-s_ade20k.py 8 --cfg-options ...
"""

_base_ = 'upernet_vit-b_ade20k.py'

model = dict(
    backbone=dict(arch='small'),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384] * 4, channels=384),
    auxiliary_head=dict(in_channels=384),
)
