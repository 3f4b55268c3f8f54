"""ViT-H/14 with parameters, gradients and optimiser state sharded over the ranks (FSDP).

Source:   simmim_vit-h.py; docs/reliability.md lists what sharding changes. The same two lines work for the other sizes.
Command:  tools/dist_train.sh configs/simmim_vit-h_fsdp.py 8
"""

_base_ = 'simmim_vit-h.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='simmim_plugin.ShardedStrategy')
