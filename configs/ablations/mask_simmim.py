"""The published masks: the baseline of the other rows.

Source:   arXiv 2111.09886.
Command:  python tools/ablate.py configs/ablations/mask_simmim.py --data-root /path/to/data
Expected: at a small size, see docs/results.md.
"""

_base_ = '../simmim_vit-b.py'

mask = _base_.masks.simmim
