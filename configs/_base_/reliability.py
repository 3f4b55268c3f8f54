"""Hooks for reliable runs: checkpoints, seeds per iteration, faults, signals (docs/reliability.md)."""

custom_imports = dict(imports=['simmim_plugin.config'])  # lets MMEngine fill in named parts, data_root and classes

reliability = dict(
    runtime_info=dict(type='simmim_plugin.SimMIMRuntimeInfoHook'),
    checkpoint=dict(type='simmim_plugin.SimMIMCheckpointHook', max_keep_ckpts=3),
    seeds=dict(type='simmim_plugin.IterationSeedHook'),
    faults=dict(type='simmim_plugin.FaultHook'),
    interrupt=dict(type='simmim_plugin.InterruptHook'),
)
