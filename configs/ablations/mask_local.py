"""Only the local mask of simultaneous masking: 0.75 of the units of 32 px.

Source:   the document on simultaneous masking, see docs/masking.md.
Command:  python tools/ablate.py configs/ablations/mask_local.py --data-root /path/to/data
Cost:     not measured.
Expected: not run at this size; small: docs/results.md.
"""

_base_ = '../simmim_vit-b.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3] = dict(type='SimMIMMaskGenerator', local=_base_.masks.simultaneous.local, model_patch_size=16)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
