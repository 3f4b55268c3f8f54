"""Only the global mask of simultaneous masking: 0.1 of the units of 64 px.

Source:   the document on simultaneous masking, see docs/masking.md.
Command:  python tools/ablate.py configs/ablations/mask_global.py --data-root /path/to/data
Cost:     not measured.
Expected: not run at this size; small: docs/results.md.
"""

_base_ = '../simmim_vit-b.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3] = dict(type='SimMIMMaskGenerator', global_=_base_.masks.simultaneous.global_, model_patch_size=16)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
