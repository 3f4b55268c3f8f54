"""The published masks, as they are: the row that the others are compared with.

Source:   arXiv 2111.09886.
Command:  python tools/ablate.py configs/ablations/mask_simmim.py --data-root /path/to/data
Cost:     not measured.
Expected: not run at this size; small: docs/results.md.
"""

_base_ = '../simmim_vit-b.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3] = _base_.masks.simmim
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
