"""Base of all segmentation configs: MMSegmentation's scope, iterations instead of epochs, optimiser and schedule.

Set `load_from` to the pretraining checkpoint; without it, training starts from scratch.

Source:   the recipe for ADE20K of BEiT (arXiv 2106.08254), with the rate and layer decay that MMSegmentation's config
          of MAE has: 160,000 iterations of 16 images, 1,500 of warm-up, a linear fall to 0, AdamW with 1e-4 and weight
          decay 0.05, layer decay 0.65, drop path 0.1.
"""

_base_ = '../../_base_/reliability.py'

default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=1800),  # seconds
)
sync_bn = 'torch'  # batch-norm statistics over all ranks
visualizer = dict(
    type='SegLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
    name='visualizer',
)
log_processor = dict(type='simmim_plugin.SimMIMLogProcessor', by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
default_hooks = dict(
    _base_.reliability,
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(_base_.reliability.checkpoint, by_epoch=False, interval=16000, save_best='mIoU'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
custom_hooks = [dict(type='simmim_plugin.SegLabelHook')]
optim_wrapper = dict(
    type='simmim_plugin.AutocastOptimWrapper',  # bfloat16 on GPUs, float32 on CPUs
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    constructor='simmim_plugin.SimMIMOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.65),
)
auto_scale_lr = dict(enable=True, base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
