"""Fine-tune ViT-L/16 on ImageNet-1k at 224 px; activations are recomputed to save memory.

Source:   the recipe of vit-b_in1k.py; no published result for this size.
Command:  tools/dist_train.sh configs/finetune/vit-l_in1k.py 8 \
              --cfg-options load_from=work_dirs/simmim_vit-l/epoch_800.pth
"""

_base_ = 'vit-b_in1k.py'

model = dict(backbone=dict(arch='large', with_cp=True), head=dict(in_channels=1024))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(accumulative_counts=2)
