"""Rectangles over 75 of 196 tokens, as in BEiT.

Source:   arXiv 2106.08254 (BEiT).
Command:  python tools/ablate.py configs/ablations/mask_blockwise.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

mask = dict(_delete_=True, **_base_.masks.blockwise)
