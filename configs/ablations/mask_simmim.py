"""The published masks, as they are: the row that the others are compared with.

Source:   arXiv 2111.09886.
Command:  python tools/ablate.py configs/ablations/mask_simmim.py --data-root /path/to/data
Expected: at a small size, see docs/results.md.
"""

_base_ = '../simmim_vit-b.py'

mask = _base_.masks.simmim
