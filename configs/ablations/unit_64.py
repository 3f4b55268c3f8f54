"""Mask units of 64 px; published: 32.

Source:   arXiv 2111.09886, ablation of unit sizes.
Command:  python tools/ablate.py configs/ablations/unit_64.py --data-root /path/to/data
Cost:     not measured.
Expected: not run.
"""

_base_ = '../simmim_vit-b.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3].mask_patch_size = 64
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
