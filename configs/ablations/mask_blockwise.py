"""Rectangles over 75 of 196 tokens, as BEiT.

Source:   arXiv 2106.08254 (BEiT).
Command:  python tools/ablate.py configs/ablations/mask_blockwise.py --data-root /path/to/data
Cost:     not measured.
Expected: not run.
"""

_base_ = '../simmim_vit-b.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3] = _base_.masks.blockwise
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
