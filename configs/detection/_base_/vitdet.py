"""Base of all detection configs: a SimMIMViT with windows, its feature pyramid, and the schedule of ViTDet.

Set `load_from` to the pretraining checkpoint; without it, training starts from scratch.

Source:   ViTDet (arXiv 2203.16527) and its public code: 1024 px, large-scale jitter, batch 64, AdamW with 1e-4 and
          weight decay 0.1, layer decay 0.7, drop path 0.1, 100 epochs with drops at 8/9 and 26/27 of the iterations,
          250 iterations of warm-up. The jitter's range is 0.1 to 2.
"""

_base_ = ['mmdet::_base_/default_runtime.py', '../../_base_/reliability.py']

custom_hooks = [dict(type='NumClassCheckHook')]

vit = dict(
    type='simmim_plugin.SimMIMViT',
    arch='base',
    img_size=224,  # bias tables of 14 x 14 patches, as in pretraining and in each window
    drop_path_rate=0.1,
    use_shared_rel_pos_bias=False,
    use_rel_pos_bias=True,
    window_size=14,
    global_blocks=(2, 5, 8, 11),
    init_cut=2.0,
)
pyramid = dict(type='simmim_plugin.SimpleFeaturePyramid', in_channels=768)
optim_wrapper = dict(
    type='simmim_plugin.AutocastOptimWrapper',  # bfloat16 on GPUs, float32 on CPUs
    parts=('backbone', 'neck'),  # MMCV's RoIAlign and NMS do not support bfloat16
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, fused=True),
    constructor='simmim_plugin.SimMIMOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.7),
)
auto_scale_lr = dict(enable=True, base_batch_size=64)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', milestones=[89, 96], gamma=0.1),
]
train_cfg = dict(type='simmim_plugin.ResumableTrainLoop', max_epochs=100, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(_base_.reliability)
log_processor = dict(type='simmim_plugin.SimMIMLogProcessor')
