"""UPerNet with a ViT-L on ADE20K.

Source:   upernet_vit-b_ade20k.py at the size of a ViT-L: layer decay 0.8 and drop path 0.2.
Command:  tools/dist_train.sh configs/segmentation/upernet_vit-l_ade20k.py 8 --cfg-options ...
"""

_base_ = 'upernet_vit-b_ade20k.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, out_indices=(7, 11, 15, 23)),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
