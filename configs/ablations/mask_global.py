"""Only the global mask of simultaneous masking: 0.1 of the units of 64 px.

Source:   the document on simultaneous masking, see docs/masking.md.
Command:  python tools/ablate.py configs/ablations/mask_global.py --data-root /path/to/data
Expected: at a small size, see docs/results.md.
"""

_base_ = '../simmim_vit-b.py'

mask = dict(_delete_=True, type='SimMIMMaskGenerator', global_=_base_.masks.simultaneous.global_, model_patch_size=16)
