"""Fine-tune ViT-B/16 on ImageNet-1k at 224 px, 100 epochs: the published recipe.

`load_from` is a checkpoint of configs/simmim_vit-b.py, or an official one (tools/convert_checkpoint.py).

Source:   arXiv 2111.09886 and its reference implementation (ViT-B).
Command:  tools/dist_train.sh configs/finetune/vit-b_in1k.py 8 \
              --cfg-options load_from=work_dirs/simmim_vit-b/epoch_800.pth       (8 x 256 = total batch 2048)
Expected: 83.8 % top-1 after 800 epochs of pretraining (published); not run here.
"""

_base_ = '_base_/classification.py'

data_root = 'data/imagenet'

model = dict(
    # OpenCV reads BGR; the mean and std are RGB.
    data_preprocessor=dict(num_classes=1000, to_rgb=True),
    backbone=dict(arch='base', img_size=224, patch_size=16),
    head=dict(num_classes=1000, in_channels=768),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),  # one of them per batch
)

bgr_mean = [103.53, 116.28, 123.675]
load = dict(type='LoadImageFromFile')
crop = dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic')
flip = dict(type='RandomFlip', prob=0.5, direction='horizontal')
augment = dict(  # rand-m9-mstd0.5-inc1
    type='RandAugment',
    policies='timm_increasing',
    num_policies=2,
    total_level=10,
    magnitude_level=9,
    magnitude_std=0.5,
    hparams=dict(pad_val=[round(x) for x in bgr_mean], interpolation='bicubic'),
)
erase = dict(
    type='RandomErasing',
    erase_prob=0.25,
    mode='rand',
    min_area_ratio=0.02,
    max_area_ratio=1 / 3,
    fill_color=bgr_mean,
    fill_std=[57.375, 57.12, 58.395],
)
resize = dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic')
center_crop = dict(type='CenterCrop', crop_size=224)
pack = dict(type='PackInputs')
train_pipeline = [dict(_part_=name) for name in ('load', 'crop', 'flip', 'augment', 'erase', 'pack')]
test_pipeline = [dict(_part_=name) for name in ('load', 'resize', 'center_crop', 'pack')]
train_dataloader = dict(
    batch_size=256,
    num_workers=None,  # chosen by tools/train.py from the cores
    dataset=dict(type='ImageNet', data_root=None, split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=None,  # chosen by tools/train.py from the cores
    dataset=dict(type='ImageNet', data_root=None, split='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader

# Learning rate 1.25e-3 per 512 images: 5e-3 for 2048, scaled by MMEngine; layer l gets 0.65^(13 - l) of it.
optim_wrapper = dict(optimizer=dict(lr=5e-3), paramwise_cfg=dict(layer_decay_rate=0.65))
auto_scale_lr = dict(enable=True, base_batch_size=2048)
# Warm-up from 2.5e-7 per 512 images (2e-4 of the rate), also the floor of every layer; the cosine spans all 100 epochs.
param_scheduler = [
    dict(type='simmim_plugin.WarmupCosineLR', warmup=20, end=100, floor_ratio=2e-4, convert_to_iter_based=True)
]
train_cfg = dict(type='simmim_plugin.ResumableTrainLoop', max_epochs=100, val_interval=1)
