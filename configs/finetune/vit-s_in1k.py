"""Fine-tune ViT-S/16 on ImageNet-1k at 224 px.

Source:   the recipe of vit-b_in1k.py; no published result for this size.
Command:  tools/dist_train.sh configs/finetune/vit-s_in1k.py 8 \
              --cfg-options load_from=work_dirs/simmim_vit-s/epoch_800.pth
"""

_base_ = 'vit-b_in1k.py'

model = dict(backbone=dict(arch='small'), head=dict(in_channels=384))
