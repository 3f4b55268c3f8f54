"""Local and global masks at once; the published loss.

Source:   the document on simultaneous masking, see docs/masking.md.
Command:  python tools/ablate.py configs/ablations/mask_simultaneous.py --data-root /path/to/data
Expected: at a small size, see docs/results.md.
"""

_base_ = '../simmim_vit-b.py'

mask = dict(_delete_=True, **_base_.masks.simultaneous)
