"""Base of all pretraining and fine-tuning configs: logging, checkpoints, seeds."""

_base_ = 'reliability.py'

default_scope = 'simmim_plugin'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=1800),
)
default_hooks = dict(
    _base_.reliability,
    timer=dict(type='IterTimerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(_base_.reliability.checkpoint, interval=10),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [dict(type='ReconstructionHook', interval=10)]
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
log_processor = dict(type='SimMIMLogProcessor')
log_level = 'INFO'
randomness = dict(seed=0, diff_rank_seed=True)
load_from = None
resume = False
