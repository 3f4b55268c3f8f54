"""Mask ratio 0.3; published: 0.6.

Source:   arXiv 2111.09886, ablation of mask ratios.
Command:  python tools/ablate.py configs/ablations/ratio_03.py --data-root /path/to/data
Cost:     not measured.
Expected: not run.
"""

_base_ = '../simmim_vit-b.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3].mask_ratio = 0.3
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
