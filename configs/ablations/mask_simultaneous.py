"""Local and global masks at once; the published loss.

Source:   the document on simultaneous masking, see docs/masking.md.
Command:  python tools/ablate.py configs/ablations/mask_simultaneous.py --data-root /path/to/data
Cost:     not measured.
Expected: not run at this size; small: docs/results.md.
"""

_base_ = '../simmim_vit-b.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3] = _base_.masks.simultaneous
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
