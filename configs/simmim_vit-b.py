"""SimMIM ViT-B/16, ImageNet-1k, 224 px, 800 epochs: the published recipe.

Source:   arXiv 2111.09886 and its reference implementation (ViT-B).
Command:  tools/dist_train.sh configs/simmim_vit-b.py 8          (8 x 256 = total batch 2048)
Expected: 83.8 % top-1 after fine-tuning (published); not run here.
"""

_base_ = ['_base_/runtime.py', '_base_/photos_224.py']

model = dict(
    type='SimMIM',
    data_preprocessor=dict(type='SimMIMDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        type='SimMIMViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        layer_scale_init_value=0.1,
        use_shared_rel_pos_bias=True,
    ),
    head=dict(type='SimMIMHead', loss=dict(type='ReconstructionLoss', criterion='l1')),
)

# Learning rate 1e-4 per 512 images: 4e-4 for 2048, scaled by MMEngine to the total batch size.
optim_wrapper = dict(
    type='AutocastOptimWrapper',  # bfloat16 on GPUs, float32 on CPUs
    optimizer=dict(type='AdamW', lr=4e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
    # No decay for 1-D parameters, class token and position embedding; mask token and bias tables are decayed.
    constructor='SimMIMOptimWrapperConstructor',
)
auto_scale_lr = dict(enable=True, base_batch_size=2048)

# Warm-up from 5e-7 per 512 images (0.005 of the rate) over 10 epochs, then constant, x 0.1 at epoch 700.
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.005, end=10, convert_to_iter_based=True),
    dict(type='MultiStepLR', milestones=[700], gamma=0.1),
]
train_cfg = dict(type='ResumableTrainLoop', max_epochs=800)
