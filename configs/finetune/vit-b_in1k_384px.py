"""Fine-tune ViT-B/16 on ImageNet-1k at 384 px; the bias tables of 224 px are interpolated on loading.

Source:   the recipe of vit-b_in1k.py; no published result for this size.
Command:  tools/dist_train.sh configs/finetune/vit-b_in1k_384px.py 8 \
              --cfg-options load_from=work_dirs/simmim_vit-b/epoch_800.pth
"""

_base_ = 'vit-b_in1k.py'

model = dict(backbone=dict(img_size=384))
crop = dict(scale=384)
resize = dict(scale=438)  # int(384 * 256 / 224)
center_crop = dict(crop_size=384)
train_dataloader = dict(batch_size=64)
val_dataloader = dict(batch_size=64)
test_dataloader = val_dataloader
optim_wrapper = dict(accumulative_counts=4)
