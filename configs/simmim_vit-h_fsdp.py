"""ViT-H/14 with parameters, gradients and optimiser state sharded over the processes (FSDP).

Source:   simmim_vit-h.py; docs/reliability.md says what sharding changes. The same two lines shard the other sizes.
Command:  tools/dist_train.sh configs/simmim_vit-h_fsdp.py 8
"""

_base_ = 'simmim_vit-h.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='simmim_plugin.ShardedStrategy')
