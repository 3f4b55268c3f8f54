"""Fine-tune ViT-B/16 with the labels of 1 % of ImageNet-1k's training images, the same share of each class.

The images are chosen by a seed, not those of SimCLR's list.

Source:   vit-b_in1k_10pct.py; no published result for this share.
Command:  tools/dist_train.sh configs/finetune/vit-b_in1k_1pct.py 8 \
              --cfg-options load_from=work_dirs/simmim_vit-b/epoch_800.pth
"""

_base_ = 'vit-b_in1k_10pct.py'

train_dataloader = dict(dataset=dict(fraction=0.01))
