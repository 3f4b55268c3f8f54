"""Fine-tune ViT-B/16 on ImageNet-1k at 224 px after a pretraining of 9 blocks at 128 px.

The bias tables are interpolated from 8 x 8 to 14 x 14 patches on loading; the last three blocks are new.

Source:   the recipe of vit-b_in1k.py; FastMIM (arXiv 2212.06593) for the new blocks.
Command:  tools/dist_train.sh configs/finetune/vit-b_128px_in1k.py 8 \
              --cfg-options load_from=work_dirs/simmim_vit-b_128px/epoch_800.pth       (8 x 256 = total batch 2048)
"""

_base_ = 'vit-b_in1k.py'

default_hooks = dict(checkpoint=dict(new_blocks=3))
