"""Smooth L1 on masked pixels; published: l1.

Source:   arXiv 2111.09886, ablation of targets.
Command:  python tools/ablate.py configs/ablations/loss_smooth_l1.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

model = dict(head=dict(loss=dict(criterion='smooth_l1')))
