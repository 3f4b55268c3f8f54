"""How a run is logged, saved and seeded. Every pretraining config starts from here."""

default_scope = 'simmim_plugin'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=1800),
)
default_hooks = dict(
    runtime_info=dict(type='simmim_plugin.SimMIMRuntimeInfoHook'),
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='SimMIMCheckpointHook', interval=10, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    seeds=dict(type='IterationSeedHook'),
    faults=dict(type='FaultHook'),
    interrupt=dict(type='InterruptHook'),
)
custom_hooks = [dict(type='ReconstructionHook', interval=10)]
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
log_processor = dict(type='SimMIMLogProcessor')
log_level = 'INFO'
randomness = dict(seed=0, diff_rank_seed=True)
load_from = None
resume = False
