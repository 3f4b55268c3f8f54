"""Only the local mask of simultaneous masking: 0.75 of the units of 32 px.

Source:   the document on simultaneous masking, see docs/masking.md.
Command:  python tools/ablate.py configs/ablations/mask_local.py --data-root /path/to/data
Expected: at a small size, see docs/results.md.
"""

_base_ = '../simmim_vit-b.py'

mask = dict(_delete_=True, type='SimMIMMaskGenerator', local=_base_.masks.simultaneous.local, model_patch_size=16)
