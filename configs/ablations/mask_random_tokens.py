"""Single tokens at ratio 0.75, as MAE.

Source:   arXiv 2111.06377 (MAE).
Command:  python tools/ablate.py configs/ablations/mask_random_tokens.py --data-root /path/to/data
Cost:     not measured.
Expected: not run.
"""

_base_ = '../simmim_vit-b.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3] = _base_.masks.random_tokens
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
