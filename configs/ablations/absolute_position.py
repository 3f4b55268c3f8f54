"""Not the published recipe: a learned absolute position embedding instead of the shared relative position bias.

Attention then has no bias, and PyTorch chooses its kernel everywhere (docs/performance.md).

Source:   the positions of ViT (arXiv 2010.11929) in configs/simmim_vit-b.py.
Command:  python tools/ablate.py configs/ablations/absolute_position.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

model = dict(backbone=dict(use_shared_rel_pos_bias=False, use_abs_pos_embed=True))
