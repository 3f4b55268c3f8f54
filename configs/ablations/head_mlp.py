"""A head of two layers; published: linear.

Source:   arXiv 2111.09886, ablation of heads.
Command:  python tools/ablate.py configs/ablations/head_mlp.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

model = dict(head=dict(num_layers=2))
